"""Stories as bAbI's own generator tells them (facebookarchive/bAbI-tasks), for training: people, things, rooms, and a question.

Rooms of people and things are drawn at the start and are not told. What a question may ask follows from what was told alone. Where bAbI's
files are not what that generator writes, ours are as the files: questions come after pairs of facts and ask for one of the last five facts.
It is of a thing that was got or dropped (qa2, qa3: one whose way two or three facts tell), of who moved (qa6), of who got, dropped or gave
a thing (qa7, qa8), or of whom it was told where they are or are not (qa9). How often things are got, dropped and given was fitted to the
files. qa1 asks for older facts too, which the files do not.
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
DROPPED = ("dropped", "left", "discarded", "put down")
GAVE = ("gave", "handed", "passed")
QUESTIONS = 5
"""Of a story; one of them is the last."""
RECENT = 5
"""Facts: that a question asks for one of (qa1 for older ones too)."""


@dataclass
class _World:
    """What is so, and what was told of it. things: where each lies, a room or a person. rooms, excluded: of people, as told. histories: of
    things, the rooms where they were known to be. held: what each person is known to hold, in order. facts: that were told before this one.
    placed, acted: of facts, by their number, who is told to be or not to be somewhere, and who got, dropped or gave a thing. handled: of
    things, `facts` when they were last got or dropped. carried: of things, how often who got them last went on with them.
    """

    draw: np.random.Generator
    people: dict[str, str]
    things: dict[str, str]
    rooms: dict[str, str] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    histories: dict[str, list[str]] = field(default_factory=lambda: {thing: [] for thing in THINGS})
    held: dict[str, list[str]] = field(default_factory=lambda: {person: [] for person in PEOPLE})
    facts: int = 0
    placed: dict[int, str] = field(default_factory=dict)
    acted: dict[int, str] = field(default_factory=dict)
    handled: dict[str, int] = field(default_factory=dict)
    carried: dict[str, int] = field(default_factory=dict)

    def choose(self, options: tuple[str, ...] | list[str]) -> str:
        return options[int(self.draw.integers(len(options)))]

    def move(self) -> str:
        """Somebody goes to another room."""
        person = self.choose(PEOPLE)
        room = self.choose([room for room in ROOMS if room != self.people[person]])
        self.people[person] = self.rooms[person] = room
        self.placed[self.facts] = person
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
            self.acted[self.facts] = person
            if thing in self.held[person]:
                self.held[person].remove(thing)
            return f"{person} {self.choose(DROPPED)} the {thing}{there}."
        if self.things[thing] == self.people[person]:
            self.things[thing], self.handled[thing] = person, self.facts
            self.acted[self.facts] = person
            self._take(person, thing)
            return f"{person} {self.choose(GOT)} the {thing}{there}."
        return None

    def give(self) -> str | None:
        """Somebody gives a thing to somebody in the same room."""
        giver = self.choose(PEOPLE)
        takers = [person for person in PEOPLE if person != giver and self.people[person] == self.people[giver]]
        if not takers or not self.held[giver]:
            return None
        thing, taker = self.choose(self.held[giver]), self.choose(takers)
        self.things[thing], self.acted[self.facts] = taker, giver
        self.held[giver].remove(thing)
        self._take(taker, thing)
        return f"{giver} {self.choose(GAVE)} the {thing} to {taker}."

    def be(self) -> str:
        """Somebody goes to another room, and it is told where they are or are no longer."""
        person = self.choose(PEOPLE)
        left, room = self.people[person], self.choose([room for room in ROOMS if room != self.people[person]])
        self.people[person], self.placed[self.facts] = room, person
        if self.draw.integers(2):
            self.rooms[person] = room
            self.excluded.pop(person, None)
            return f"{person} is in the {room}."
        self.rooms.pop(person, None)
        self.excluded[person] = left
        return f"{person} {self.choose(('is not in', 'is no longer in'))} the {left}."

    def _take(self, person: str, thing: str) -> None:
        self.held[person].append(thing)
        self.carried[thing] = 0
        if person in self.rooms:
            self._seen(thing, self.rooms[person])

    def things_lately(self) -> list[str]:
        """That were got or dropped within the last facts."""
        return [thing for thing, when in self.handled.items() if self.facts - when < RECENT]

    def people_lately(self, told: dict[int, str]) -> list[str]:
        """Of the last facts, in their order: somebody of two facts comes twice, and is as likely again to be asked for."""
        return [person for fact, person in told.items() if self.facts - fact < RECENT]

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
    known = [thing for thing in world.things_lately() if world.carried[thing] or world.histories[thing][-1:] == [world.things[thing]]]
    if not known:
        return None
    thing = world.choose(known)
    return f"Where is the {thing}?", world.histories[thing][-1]


def _where_was_thing(world: _World) -> Asked:
    """Of one that was carried through two rooms."""
    known = [thing for thing in world.things_lately() if world.carried[thing] > 1]
    if not known:
        return None
    thing = world.choose(known)
    before, last = world.histories[thing][-2:]
    return f"Where was the {thing} before the {last}?", before


def _is_person_there(world: _World) -> Asked:
    """yes and no are as likely; where only a room is known in which somebody is not, it is asked of that one."""
    known = world.people_lately(world.placed)
    if not known:
        return None
    person = world.choose(known)
    room = world.rooms.get(person)
    if room is None:
        return f"Is {person} in the {world.excluded[person]}?", "no"
    if world.draw.integers(2):
        return f"Is {person} in the {room}?", "yes"
    return f"Is {person} in the {world.choose([other for other in ROOMS if other != room])}?", "no"


def _how_many(world: _World) -> Asked:
    known = world.people_lately(world.acted)
    if not known:
        return None
    person = world.choose(known)
    return f"How many objects is {person} carrying?", COUNTS[len(world.held[person])]


def _what(world: _World) -> Asked:
    known = world.people_lately(world.acted)
    if not known:
        return None
    person = world.choose(known)
    return f"What is {person} carrying?", ",".join(world.held[person]) or "nothing"


Kind = Callable[[_World], str | None]
_HANDS: tuple[Kind, ...] = (_World.get_or_drop, _World.get_or_drop, _World.get_or_drop, _World.move)
_GIVES: tuple[Kind, ...] = (*_HANDS, _World.give, _World.give, _World.give, _World.give)
_TASKS: dict[str, tuple[tuple[Kind, ...], Callable[[_World], Asked]]] = {
    "qa1": ((_World.move,), _where_is_person),
    "qa2": (_HANDS, _where_is_thing),
    "qa3": (_HANDS, _where_was_thing),
    "qa6": (_HANDS, _is_person_there),
    "qa7": (_GIVES, _how_many),
    "qa8": (_HANDS, _what),
    "qa9": ((_World.move, _World.be), _is_person_there),
}
"""What happens, as likely each (again, where it cannot), and what is asked."""
TOLD = tuple(_TASKS)
