"""What the watch over the wall clock says after steps."""

from __future__ import annotations

from dataclasses import dataclass, field

from mta.delivery.clock import ClockWatch
from mta.queue.records import Message

SECOND = 1_000_000
DAY = 86_400 * SECOND


@dataclass
class World:
    """Both clocks, and the messages accepted so far."""

    wall_us: int = 1000 * DAY
    steady_us: int = 5 * SECOND
    messages: int = 0
    steps: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.watch = ClockWatch(lambda: self.wall_us, lambda: {3: self.messages << 10 | 3}, lambda: self.steady_us)
        self.watch.on_step = self.steps.append

    def accept(self) -> Message:
        self.messages += 1
        return Message(self.messages << 10 | 3, "a@x.test", self.wall_us, b"")

    def pass_by(self, us: int) -> None:
        self.wall_us += us
        self.steady_us += us
        self.watch.look()

    def step(self, us: int) -> None:
        self.wall_us += us
        self.watch.look()

    def age_us(self, message: Message) -> int:
        return self.watch.age_us(message, self.wall_us)


def test_a_clock_that_is_kept_right_makes_no_steps() -> None:
    """Slewing adds up over days, and is never taken for a step."""
    world = World()
    for _ in range(1000):
        world.pass_by(SECOND)
        world.wall_us += 900_000
        world.watch.look()

    assert world.steps == []


def test_ages_are_true_whatever_is_done_to_the_clock() -> None:
    """For messages accepted before, during and after a time in which the clock was wrong, both ways."""
    for step in (DAY, -DAY):
        world = World()
        before = world.accept()
        world.pass_by(10 * SECOND)
        world.step(step)
        during = world.accept()
        world.pass_by(10 * SECOND)
        assert (world.age_us(before), world.age_us(during)) == (20 * SECOND, 10 * SECOND)

        world.step(-step)
        after = world.accept()
        world.pass_by(10 * SECOND)

        assert [world.age_us(one) for one in (before, during, after)] == [30 * SECOND, 20 * SECOND, 10 * SECOND]
        assert world.steps == [step, -step]


def test_what_comes_before_a_step_is_noticed_is_as_old_as_the_look() -> None:
    """By which time it was accepted is not known, least of all when there were several steps."""
    world = World()
    world.pass_by(10 * SECOND)
    messages = []
    for step in (-DAY, -DAY, 3 * DAY):
        messages.append(world.accept())
        world.wall_us += step
    world.watch.look()
    world.pass_by(10 * SECOND)
    world.step(-2 * DAY)

    assert [world.age_us(message) for message in messages] == [10 * SECOND] * 3


def test_messages_of_a_shard_that_nobody_knows_have_the_age_that_the_clock_says() -> None:
    """Nothing is known of what was done before."""
    world = World()
    message = Message(1 << 10 | 7, "a@x.test", world.wall_us, b"")
    world.step(DAY)

    assert world.age_us(message) == DAY
