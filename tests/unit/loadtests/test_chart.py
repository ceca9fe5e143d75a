"""The chart is an image that shows what it was given."""

from xml.etree import ElementTree

from loadtests.chart import UNIT_WIDTH, ratio_chart

SVG = "{http://www.w3.org/2000/svg}"


def test_a_bar_is_as_long_as_its_ratio_and_says_so() -> None:
    image = ElementTree.fromstring(ratio_chart("a < b", [("one", 0.5, 0.45), ("two", 1.25, 0.9)]))

    bars = [float(bar.attrib["width"]) for bar in image.iter(f"{SVG}rect")]
    words = [text.text for text in image.iter(f"{SVG}text")]
    assert bars == [round(0.5 * UNIT_WIDTH), round(1.25 * UNIT_WIDTH)]
    assert {"a < b", "one", "two", "0.50", "1.25"} <= set(words)
    assert max(bars) < float(image.attrib["width"])
