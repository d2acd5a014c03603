"""Stories as bAbI's own generator tells them (facebookarchive/bAbI-tasks), for training: people, things, rooms, and a question.

Rooms of people and things are drawn at the start and are not told. What a question may ask follows from what was told alone. Where bAbI's
files are not what that generator writes, ours are as the files: questions come after pairs of facts, and where a thing is or was
(qa2, qa3) is asked within five facts of its being got or dropped, of things whose way two or three facts tell. How often they are got
and dropped was fitted to the files.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from domains.text.tasks.babi import Story

ROOMS = ("kitchen", "bathroom", "bedroom", "garden", "office", "hallway")
THINGS = ("apple", "football", "milk")
PEOPLE = ("Mary", "John", "Sandra", "Daniel")
COUNTS = ("none", "one", "two", "three")
MOVED = ("went to", "journeyed to", "travelled to", "moved to", "went back to")
GOT = ("grabbed", "took", "got", "picked up")
_DROPPED = ("dropped", "left", "discarded", "put down")
_GAVE = ("gave", "handed", "passed")
QUESTIONS = 5
"""Of a story; one of them is the last."""
RECENT = 5
"""Facts: that a thing was got or dropped within."""


@dataclass
class _World:
    """What is so, and what was told of it. things: where each lies, a room or a person. rooms, excluded: of people, as told. histories: of
    things, the rooms where they were known to be. held: what each person is known to hold, in order. acted: got, dropped or gave a thing.
    facts: that were told before this one. handled: of things, `facts` when they were last got or dropped. carried: of things, how often who
    got them last went on with them.
    """

    draw: np.random.Generator
    people: dict[str, str]
    things: dict[str, str]
    rooms: dict[str, str] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    histories: dict[str, list[str]] = field(default_factory=lambda: {thing: [] for thing in THINGS})
    held: dict[str, list[str]] = field(default_factory=lambda: {person: [] for person in PEOPLE})
    acted: list[str] = field(default_factory=list)
    facts: int = 0
    handled: dict[str, int] = field(default_factory=dict)
    carried: dict[str, int] = field(default_factory=dict)

    def choose(self, options: tuple[str, ...] | list[str]) -> str:
        return options[int(self.draw.integers(len(options)))]

    def move(self) -> str:
        """Somebody goes to another room."""
        person = self.choose(PEOPLE)
        room = self.choose([room for room in ROOMS if room != self.people[person]])
        self.people[person] = self.rooms[person] = room
        self.excluded.pop(person, None)
        for thing in self.held[person]:
            self.carried[thing] += 1
            self._seen(thing, room)
        return f"{person} {self.choose(MOVED)} the {room}."

    def get_or_drop(self) -> str | None:
        """Somebody takes a thing of the room, or drops one."""
        person, thing = self.choose(PEOPLE), self.choose(THINGS)
        there = self.choose(("", " there"))
        if self.things[thing] == person:
            self.things[thing], self.handled[thing] = self.people[person], self.facts
            self._act(person)
            if thing in self.held[person]:
                self.held[person].remove(thing)
            return f"{person} {self.choose(_DROPPED)} the {thing}{there}."
        if self.things[thing] == self.people[person]:
            self.things[thing], self.handled[thing] = person, self.facts
            self._act(person)
            self._take(person, thing)
            return f"{person} {self.choose(GOT)} the {thing}{there}."
        return None

    def give(self) -> str | None:
        """Somebody gives a thing to somebody in the same room."""
        giver, taker, thing = self.choose(PEOPLE), self.choose(PEOPLE), self.choose(THINGS)
        if giver == taker or self.things[thing] != giver or self.people[giver] != self.people[taker]:
            return None
        self.things[thing] = taker
        self._act(giver)
        self.held[giver].remove(thing)
        self._take(taker, thing)
        return f"{giver} {self.choose(_GAVE)} the {thing} to {taker}."

    def be(self) -> str:
        """It is told where somebody is or is not."""
        person = self.choose(PEOPLE)
        if self.draw.integers(2):
            room = self.rooms[person] = self.people[person]
            self.excluded.pop(person, None)
            return f"{person} is in the {room}."
        room = self.choose([room for room in ROOMS if room != self.people[person]])
        if self.draw.integers(2):  # it is the room that was left, for another that is not told
            room, self.people[person] = self.people[person], room
            self.rooms.pop(person, None)
        if person not in self.rooms:
            self.excluded[person] = room
        return f"{person} {self.choose(('is not in', 'is no longer in'))} the {room}."

    def _act(self, person: str) -> None:
        if person not in self.acted:
            self.acted.append(person)

    def _take(self, person: str, thing: str) -> None:
        self.held[person].append(thing)
        self.carried[thing] = 0
        if person in self.rooms:
            self._seen(thing, self.rooms[person])

    def lately(self) -> list[str]:
        """Things that were got or dropped within the last facts."""
        return [thing for thing, when in self.handled.items() if self.facts - when < RECENT]

    def _seen(self, thing: str, room: str) -> None:
        if not self.histories[thing] or self.histories[thing][-1] != room:
            self.histories[thing].append(room)


def tell(task: str, draw: np.random.Generator, questions: int = 1) -> Story:
    """A story of qa1, qa2, qa3, qa6, qa7, qa8 or qa9, with one of the questions that bAbI would ask in it.

    questions: drawn at the same place, of which those that are not the same are asked.
    """
    world = _World(draw, {p: _choice(draw, ROOMS) for p in PEOPLE}, {t: _choice(draw, ROOMS) for t in THINGS})
    facts, found = list[str](), list[Story]()
    kinds, ask = _TASKS[task]
    while len(found) < QUESTIONS:
        told, world.facts = None, len(facts)
        while told is None:
            told = kinds[int(draw.integers(len(kinds)))](world)
        facts.append(told)
        asked = ask(world) if len(facts) % 2 == 0 else None
        if asked is not None:
            others = dict(filter(None, (ask(world) for _ in range(questions - 1))))
            others.pop(asked[0], None)
            found.append(Story(tuple(facts), *asked, tuple(others.items())))
    chosen = int(draw.integers(len(found)))
    earlier = tuple((len(story.facts), story.question, story.answer) for story in found[:chosen])
    return found[chosen]._replace(earlier=earlier)


def _choice(draw: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(draw.integers(len(options)))]


Asked = tuple[str, str] | None


def _where_is_person(world: _World) -> Asked:
    person = world.choose(sorted(world.rooms))
    return f"Where is {person}?", world.rooms[person]


def _where_is_thing(world: _World) -> Asked:
    """Of one that was carried on, or dropped where it is known to be."""
    known = [thing for thing in world.lately() if world.carried[thing] or world.histories[thing][-1:] == [world.things[thing]]]
    if not known:
        return None
    thing = world.choose(known)
    return f"Where is the {thing}?", world.histories[thing][-1]


def _where_was_thing(world: _World) -> Asked:
    """Of one that was carried through two rooms."""
    known = [thing for thing in world.lately() if world.carried[thing] > 1]
    if not known:
        return None
    thing = world.choose(known)
    before, last = world.histories[thing][-2:]
    return f"Where was the {thing} before the {last}?", before


def _is_person_there(world: _World) -> Asked:
    """yes and no are as likely; where only a room is known in which somebody is not, it is asked of that one."""
    known = sorted({*world.rooms, *world.excluded})
    person = world.choose(known)
    room = world.rooms.get(person)
    if room is None:
        return f"Is {person} in the {world.excluded[person]}?", "no"
    if world.draw.integers(2):
        return f"Is {person} in the {room}?", "yes"
    return f"Is {person} in the {world.choose([other for other in ROOMS if other != room])}?", "no"


def _how_many(world: _World) -> Asked:
    if not world.acted:
        return None
    person = world.choose(world.acted)
    return f"How many objects is {person} carrying?", COUNTS[len(world.held[person])]


def _what(world: _World) -> Asked:
    if not world.acted:
        return None
    person = world.choose(world.acted)
    return f"What is {person} carrying?", ",".join(world.held[person]) or "nothing"


Kind = Callable[[_World], str | None]
_HANDS: tuple[Kind, ...] = (_World.get_or_drop, _World.get_or_drop, _World.get_or_drop, _World.move)
_COUNTED: tuple[Kind, ...] = (_World.get_or_drop, _World.give, _World.move, _World.give)
_TASKS: dict[str, tuple[tuple[Kind, ...], Callable[[_World], Asked]]] = {
    "qa1": ((_World.move,), _where_is_person),
    "qa2": (_HANDS, _where_is_thing),
    "qa3": (_HANDS, _where_was_thing),
    "qa6": ((_World.move,), _is_person_there),
    "qa7": (_COUNTED, _how_many),
    "qa8": (_COUNTED, _what),
    "qa9": ((_World.move, _World.be), _is_person_there),
}
"""What happens, as likely each (again, where it cannot), and what is asked."""
TOLD = tuple(_TASKS)
