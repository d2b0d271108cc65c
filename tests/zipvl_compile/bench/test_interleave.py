"""ABBA order, and samples that form pairs."""

from __future__ import annotations

from zipvl_compile.bench.interleave import abba, interleave


def test_forwards_then_backwards() -> None:
    assert [item for _, item in abba("AB", 4)] == list("ABBAABBA")
    assert [item for _, item in abba("ABC", 2)] == list("ABCCBA")
    assert [number for number, _ in abba("AB", 2)] == [0, 0, 1, 1]


def test_pairs_are_of_one_round_and_warm_up_is_dropped() -> None:
    order: list[str] = []
    rounds: list[int] = []

    def run(name: str) -> dict[str, float]:
        order.append(name)
        return {"at": float(len(order)), "round": float((len(order) - 1) // 2)}

    samples = interleave({"A": lambda: run("A"), "B": lambda: run("B")}, rounds=3, warm_up=2, on_round=rounds.append)
    assert "".join(order) == "ABBA" + "ABBAAB"
    assert samples == {
        "A": {"at": [5.0, 8.0, 9.0], "round": [2.0, 3.0, 4.0]},
        "B": {"at": [6.0, 7.0, 10.0], "round": [2.0, 3.0, 4.0]},
    }
    assert rounds == [1, 2, 3, 4, 5]


def test_without_rounds_nothing_is_kept() -> None:
    assert interleave({"A": lambda: {"x": 1.0}}, rounds=0, warm_up=1) == {"A": {}}
