"""Texts on which two tokenizers must agree before one may stand in for the other: what differs in practice."""

PROBES = (
    "",
    " ",
    "\n",
    "\t \n\r\n  \x0b\x0c\u00a0\u2003\u3000",
    "Hello, world! It's 12:45, isn't it? We'll see; THEY'VE gone, I'd say.",
    "The quick brown fox jumps over the lazy dog. " * 5,
    "0 1 12 123 1234 12345 3.14159 1,000,000 ½ ² ٣ 四 Ⅳ 1e-10 0xFF",
    "def f(x: int) -> int:\n    return x ** 2  # square\n\n\tif x:\n\t\tpass\n",
    '{"key": [1, 2.5, null, true], "nested": {"a\\n": "\\u00e9"}}',
    "<html><body class='x'>&amp; &lt;tag/&gt;</body></html> https://example.org/a?b=c&d=%20#e",
    "Größe, naïve café, Ångström, e\u0301 versus é, ﬁ ligature, İstanbul, ß ẞ",
    "Привет, мир! Ελληνικά. שלום עולם. مرحبا بالعالم ١٢٣. नमस्ते दुनिया। สวัสดีชาวโลก",
    "東京タワーへ行きました。你好，世界！안녕하세요 세계. ｆｕｌｌｗｉｄｔｈ",
    "👍🏽 👩‍👩‍👧‍👦 🇫🇷 🏳️‍🌈 ☃️ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0001f9d1\u200d\U0001f680",
    "zero\u200bwidth\u200djoin\ufeffbom\u00adsoft \u202ertl\u202c",
    "a" * 300 + " " * 100 + "b" + "\n" * 50 + "!" * 60 + "-=" * 40,
    "x\u0000y \ud7ff\ue000\uffff",
    "  leading and trailing  ",
    "CamelCaseAndSNAKE_CASE and-kebab-case don't  double  spaces",
)
