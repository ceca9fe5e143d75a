"""The fleet page: cells of all roles, and what a new generation clears."""

import pytest

from ipc.errors import LayoutMismatch
from ipc.fleet_page import FleetPage, State
from ipc.segment import Segment


def test_every_process_has_a_cell_of_its_own_that_others_see() -> None:
    segment = FleetPage.create_segment(num_workers=3, num_engines=2)
    page, other = FleetPage(segment.view), FleetPage(Segment.attach(segment.fd).view)

    cells = [page.broker, *page.engines, *page.workers]
    for number, cell in enumerate(cells, start=1):
        cell.mark_alive(pid=number)

    assert [cell.pid for cell in (other.broker, *other.engines, *other.workers)] == [1, 2, 3, 4, 5, 6]


def test_a_new_generation_starts_clean() -> None:
    cell = FleetPage(FleetPage.create_segment(1, 1).view).workers[0]
    cell.begin_generation(1)
    cell.mark_alive(11)
    cell.state, cell.steps, cell.has_work, cell.progress_permille = State.READY, 9, True, 1000
    cell.mark_dead()

    cell.begin_generation(2, is_restart=True)
    cell.mark_alive(12)

    assert (cell.pid, cell.generation, cell.restarts, cell.is_alive) == (12, 2, 1, True)
    assert (cell.state, cell.steps, cell.has_work, cell.progress_permille) == (State.STARTING, 0, False, 0)


def test_ready_means_alive_ready_and_beating() -> None:
    cell = FleetPage(FleetPage.create_segment(1, 1).view).engines[0]
    cell.begin_generation(1)
    assert not cell.is_ready(60)
    cell.mark_alive(1)
    assert not cell.is_ready(60), "still starting"
    cell.state = State.READY
    assert cell.is_ready(60)
    assert not cell.is_ready(0), "its last beat is too old"
    cell.mark_dead()
    assert not cell.is_ready(60)


def test_faults_name_everything_that_is_missing_and_nothing_else() -> None:
    page = FleetPage(FleetPage.create_segment(num_workers=1, num_engines=1).view)
    assert len(page.faults(60)) == 4

    for cell in (page.broker, *page.engines, *page.workers):
        cell.begin_generation(1)
        cell.mark_alive(1)
        cell.state = State.READY
    assert page.faults(60) == ["no engine is connected to the broker"]

    page.broker.num_peers = 1
    assert page.faults(60) == []
    page.is_draining = True
    assert page.faults(60) == ["the fleet is draining"]


def test_page_of_another_layout_is_refused() -> None:
    with pytest.raises(LayoutMismatch):
        FleetPage(memoryview(bytearray(256)))


def test_a_place_is_vacant_when_nobody_is_missing() -> None:
    cell = FleetPage(FleetPage.create_segment(1, 1).view).workers[0]
    assert cell.is_vacant

    cell.begin_generation(1)
    cell.mark_alive(12)
    cell.state = State.READY
    assert not cell.is_vacant
    cell.mark_dead()
    assert not cell.is_vacant, "it died"
    cell.state = State.DRAINING
    assert cell.is_vacant
