"""The fleet as its supervisor sees it from outside."""

import os
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ipc.exposition import Exposition
from ipc.fleet_page import FleetPage, State
from ipc.metrics_page import create_metrics_segment
from ipc.ring import RingReader, RingWriter, format_ring, ring_segment_bytes
from ops.fleet_metrics import FleetMetrics

RING_BYTES = 4096


class Rig:
    """One engine, two workers, all of them this process."""

    def __init__(self) -> None:
        self.page = FleetPage(FleetPage.create_segment(2, 1).view)
        for cell in (self.page.broker, *self.page.engines, *self.page.workers):
            cell.begin_generation(1)
            cell.mark_alive(os.getpid())
            cell.state = State.READY
        self.rings = [memoryview(bytearray(ring_segment_bytes(RING_BYTES))) for _ in range(2)]
        for ring in self.rings:
            format_ring(ring, RING_BYTES)
        self.page.broker.num_peers = 1
        self.drain_limit_s = 135.0
        self._segment = create_metrics_segment("supervisor")
        self.metrics = FleetMetrics(
            self._segment.view,
            self.page,
            [self.rings],
            num_workers=2,
            heartbeat_timeout_s=1.0,
            drain_limit_s=lambda: self.drain_limit_s,
            adapters=["law", "poems"],
        )

    def samples(self) -> dict[str, float]:
        self.metrics.publish()
        text = Exposition([self._segment.view]).text().decode()
        return {
            f"{sample.name}{sorted(sample.labels.values())}": sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_deaths_are_counted_by_role_and_silence_is_not_readiness(rig: Rig) -> None:
    rig.page.workers[0].begin_generation(3, is_restart=True)
    rig.page.workers[0].mark_alive(os.getpid())
    rig.page.engines[0].mark_dead()

    samples = rig.samples()

    assert samples["tokenfleet:restarts_total['worker']"] == 1
    assert samples["tokenfleet:restarts_total['engine']"] == 0
    assert (samples["tokenfleet:processes['worker']"], samples["tokenfleet:processes_ready['worker']"]) == (2, 1)
    assert (samples["tokenfleet:processes['engine']"], samples["tokenfleet:processes_ready['engine']"]) == (1, 0)


def test_the_fill_of_a_ring_is_seen_without_its_worker(rig: Rig) -> None:
    RingReader(rig.rings[1], 1)
    assert RingWriter(rig.rings[1]).try_publish(bytes(1000), 1)

    samples = rig.samples()

    assert samples["tokenfleet:ring_occupancy['0']"] == 0
    assert samples["tokenfleet:ring_occupancy['1']"] == 1024 / RING_BYTES


def test_what_lies_in_the_ring_of_a_worker_that_was_told_to_leave_is_for_nobody(rig: Rig) -> None:
    RingReader(rig.rings[1], 1)
    assert RingWriter(rig.rings[1]).try_publish(bytes(1000), 1)
    leaver = rig.page.workers[1]
    leaver.state = State.DRAINING
    assert rig.samples()["tokenfleet:ring_occupancy['1']"] > 0, "it still reads"

    leaver.mark_dead()

    assert rig.samples()["tokenfleet:ring_occupancy['1']"] == 0


def test_memory_and_processor_time_come_from_the_processes(rig: Rig) -> None:
    samples = rig.samples()

    assert samples["tokenfleet:process_resident_memory_bytes['1', 'worker']"] > 1e6
    assert samples["process_resident_memory_bytes[]"] > 4e6
    assert samples["tokenfleet:process_cpu_seconds_total['0', 'engine']"] > 0
    assert samples["process_cpu_seconds_total[]"] == pytest.approx(
        4 * samples["tokenfleet:process_cpu_seconds_total['0', 'engine']"], rel=0.1
    )


def test_a_drain_has_an_age(rig: Rig) -> None:
    before = rig.samples()["tokenfleet:draining_seconds[]"]
    rig.page.is_draining = True
    rig.samples()

    assert before == 0 < rig.samples()["tokenfleet:draining_seconds[]"]


def test_the_limit_of_a_drain_is_the_one_of_the_settings_that_hold_now(rig: Rig) -> None:
    before = rig.samples()["tokenfleet:drain_limit_seconds[]"]
    rig.drain_limit_s = 600.0

    assert (before, rig.samples()["tokenfleet:drain_limit_seconds[]"]) == (135, 600)


def test_a_fleet_that_could_serve_once_has_been_ready_for_ever(rig: Rig) -> None:
    rig.page.engines[0].state = State.STARTING
    while_loading = rig.samples()["tokenfleet:has_been_ready[]"]
    rig.page.engines[0].state = State.READY
    when_ready = rig.samples()["tokenfleet:has_been_ready[]"]
    rig.page.engines[0].mark_dead()

    assert (while_loading, when_ready, rig.samples()["tokenfleet:has_been_ready[]"]) == (0, 1, 1)


def test_adapters_are_what_a_picker_looks_for(rig: Rig) -> None:
    """Its labels: max_lora, running_lora_adapters, waiting_lora_adapters."""
    found = {name: value for name, value in rig.samples().items() if name.startswith("vllm:lora_requests_info")}

    assert list(found) == ["vllm:lora_requests_info['', '2', 'law,poems']"]
    assert found.popitem()[1] == pytest.approx(time.time(), abs=60)
