"""The queue's bookkeeping against the same counted the simple way."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.scheduler.values import StepRequested
from appliance.scheduler.waiting import Waiting, WaitingQueue
from appliance.types import Priority

MOST = 3
MODELS = "abc"


@dataclass
class Counted:
    """A waiting request and those that passed it, each noted when it did."""

    waiting: Waiting
    overtakers: int = 0


@dataclass
class Naive:
    requests: list[Counted] = field(default_factory=list)

    def drop(self, waiting: Waiting) -> Counted:
        found = next(each for each in self.requests if each.waiting is waiting)
        self.requests.remove(found)
        return found

    def passed(self, granted: Waiting, model: str) -> None:
        for each in self.requests:
            other = each.waiting
            is_later = other.seq < granted.seq and other.model == model
            if is_later and granted.step.priority >= other.step.priority:
                each.overtakers += 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ask", "ask", "grant", "cancel"]),
            st.sampled_from(MODELS),
            st.sampled_from(list(Priority)),
            st.sets(st.sampled_from(MODELS)),
        ),
        max_size=80,
    )
)
@settings(max_examples=150, deadline=None)
def test_overtakers_are_those_that_came_later_and_went_first_wherever_passes_count(
    operations: list[tuple[str, str, Priority, set[str]]],
) -> None:
    queue, naive = WaitingQueue(MOST), Naive()
    for number, (what, model, priority, counting) in enumerate(operations):
        first = queue.first(model)
        if what == "ask":
            step = StepRequested(f"r{number}", f"a{number % 4}", (model,), priority)
            naive.requests.append(Counted(queue.add(step, model, 1.0, float(number))))
        elif first is not None and what == "cancel":
            queue.cancel(first.step.request_id)
            naive.drop(first)
        elif first is not None:
            queue.granted(first)
            assert first.overtaken == naive.drop(first).overtakers
            for line in queue.passed_by(first):
                if line.oldest.model in counting:
                    queue.count_overtaken(first, line)
            for passed in counting:
                naive.passed(first, passed)
        due = []
        for name, line in queue.lines.items():
            here = [each for each in naive.requests if each.waiting.model == name]
            assert line.oldest is here[0].waiting
            assert line.oldest.overtaken == here[0].overtakers
            if here[0].overtakers >= MOST:
                assert line.first is line.oldest
                due.append((line.oldest.seq, name))
        assert [line.oldest.model for line in queue.due_lines()] == [m for _, m in sorted(due)]
