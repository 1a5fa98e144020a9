"""The trigger: what it raises, when, and what it remembers."""

from __future__ import annotations

from uxk.subsystems.emergency import RECORDS_MAX, Trigger


class Modes:
    """A mode machine with one watermark."""

    def __init__(self):
        self.emergency = False
        self.said = []

    def raise_(self, critical, why):
        self.said.append((critical, why))
        self.emergency = critical

    def trigger(self, **settings):
        return Trigger(self.raise_, lambda: self.emergency, **settings)


def test_a_watermark_is_told_once_each_way():
    modes = Modes()
    trigger = modes.trigger()
    for now_ns, critical in enumerate((False, True, True, False, False, True)):
        trigger.look(now_ns, critical, lambda now_ns=now_ns: f"at {now_ns}")
    assert modes.said == [(True, "at 1"), (False, ""), (True, "at 5")]
    assert trigger.crossings == 2
    assert [(each.crossed_ns, each.over_ns) for each in trigger.records] == [(1, 3), (5, -1)]


def test_the_reaction_counts_from_when_a_decision_was_due():
    trigger = Modes().trigger()
    trigger.look(100, True, str)
    trigger.decided(150, busy_since_ns=20)
    trigger.decided(160, busy_since_ns=20)
    trigger.look(200, False, str)
    trigger.look(300, True, str)
    trigger.decided(900, busy_since_ns=890)  # there was nothing to decide before
    results = trigger.results()
    assert (results["emergencies"], results["decision_max_ns"], results["relief_max_ns"]) == (2, 50, 100)
    assert [each["decided_ns"] for each in results["first"]] == [150, 900]


def test_an_emergency_that_is_there_already_is_no_new_one():
    modes = Modes()
    trigger = modes.trigger()
    modes.emergency = True
    trigger.look(1, True, str)
    assert trigger.crossings == 1
    assert trigger.records == []
    assert trigger.results()["decision_max_ns"] == -1


def test_without_it_nothing_is_raised():
    modes = Modes()
    trigger = modes.trigger(enabled=False)
    trigger.look(1, True, str)
    trigger.look(2, False, str)
    trigger.decided(3, 0)
    assert modes.said == []
    assert trigger.crossings == 1


def test_records_are_bounded():
    trigger = Modes().trigger()
    for now_ns in range(RECORDS_MAX + 10):
        trigger.look(2 * now_ns, True, str)
        trigger.look(2 * now_ns + 1, False, str)
    assert len(trigger.records) == RECORDS_MAX
    assert trigger.crossings == RECORDS_MAX + 10
