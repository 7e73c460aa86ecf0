r"""Short stories made by code: what ``builtin:stories`` learns from, and is tested on.

A grammar of 25 problems, two ways out of each and words to fill them with tells more than 10^30 different stories of
80 to 170 words. Whatever a story begins with it keeps: name and pronouns, place, thing, animal,
helper, weather, and the way out fits the problem. That takes memory: an n-gram model, which sees a few words back,
writes good phrases and no story (Shannon, 1948, section 3), while attention carries a name over paragraphs.

A model is steered by how its text begins. The forms that it knows, the title being optional:

    Title: The Lost Kite\n\nMaya lived by the sea.
    Title: a lost kite\n\nMaya and Tom lived near the old mill.
    In Willowbrook, there lived a curious boy named Emil.

The title says what it is about, the first sentence who and where. Held-out stories are combinations of name, place and
problem that no story of the training split has.

    python -m gpt_text_generation.builtin.stories show --split test --count 3
"""

from __future__ import annotations

import functools
import hashlib
import math
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from shared.config import check_range, run_commands
from shared.errors import InputError

MODULE = "gpt_text_generation.builtin.stories"
Split = Literal["train", "validation", "test"]
SPLITS = ("train", "validation", "test")
HELD_OUT = {0: "test", 1: "validation"}  # remainders, by 20, of the hash of name, place and problem
UNTITLED = 0.15  # share of stories without a title
WITH_FRIEND = 0.15  # share of stories whose helper is a friend who is there from the first sentence on
INVENTED = 0.35  # share of names that are made of syllables, so that a model learns to repeat names, not to know them


# --- Words ------------------------------------------------------------------------------------------------------------

GIRLS = """Maya Alice Bianca Clara Daria Elena Fatima Greta Hannah Ingrid Julia Katya Leila Mira Nadia Olga Paula Rahel
Sofia Tamar Ursula Vera Wanda Xenia Yara Zara Aisha Beatrix Carmen Delia Emma Flora Gina Helga Imani Jana Kira Lucia
Marta Noor Odile Petra Ronja Selma Tilda Ulrike Valeria Winnie Yuki Zelda Amira Berta Chiara Dunja Edith Farida Gwen
Hilda Irma Jasmin Karla Linnea Mei Nora Oksana Priya Quiana Rita Salome Thea Uma Viola Wilma Ayla Britta Cora Dora
Esther Frieda Gesa Hedda Isabel Johanna Kaya Lotte Melina Naomi Octavia Pia Ruth Sina Tessa Vanja Wiebke Yvonne
Zuri""".split()
BOYS = """Tomas Anton Bruno Caspar David Emil Felix Gustav Hugo Ivan Jonas Karim Leon Malik Noah Oskar Pablo Quentin
Rafael Stefan Timur Urban Viktor Walter Xaver Yusuf Zeno Adam Boris Carlos Dmitri Elias Fabian Georg Hassan Igor
Jakob Kofi Lukas Mateo Nikolai Omar Pedro Rashid Simon Theo Umar Vincent Wenzel Yannick Zoltan Amir Bela Cyril Diego
Erik Farid Gregor Henrik Ismail Julian Kenji Linus Marek Nathan Otto Philipp Roman Samir Tarek Uwe Valentin
Wolfgang Yoshi Arjun Benno Cornel Dario Enzo Frederik Gilbert Hector Isaac Jasper Konrad Lorenz Moritz Nestor Orlando
Paolo Rainer Sergej Tibor Vasco Wim Yorick Zacharias""".split()
FRIENDS = """Tom Ben Sam Kim Zoe Max Lea Nils Finn Ida Joe Ann Lou Rob Eve Jim Meg Dan Sue Ned Amy Tim Pam Lars Bea Kai
Liv Jon Ada Gus Lin Abe Una Pip Roy""".split()
_KNOWN = frozenset(GIRLS + BOYS)
STARTS = "Ba Be Bo Da Do Fa Ga Go Ha Ka Ke Ko La Lo Ma Mo Na Ne Pa Ro Sa So Ta To Va Ve Za Zo".split()
MIDDLES = "l r n m d v s t k".split()
ENDS = {"girl": "ia ea una ina issa ora".split(), "boy": "ek ol ar is oth im".split()}
PRONOUNS = {"girl": ("she", "her", "her"), "boy": ("he", "him", "his")}


def _list(lines: str) -> list[str]:
    return [" ".join(item.split()) for item in lines.split(",")]


PLACES = [
    (preposition, place)
    for preposition, places in {
        "by": "the sea, the river, the lake, the pond, the waterfall, the bay, the canal",
        "near": """the harbor, the lighthouse, the old mill, the market, the swamp, the quarry, the zoo, the border, the
                   volcano, the salt mine, the museum, the windmill, the airport""",
        "in": """the mountains, the valley, the desert, the village, the meadow, the castle, the jungle, the old town,
                 the marsh, the orchard, the oasis, the capital, the north""",
        "on": "the farm, the hill, the island, the coast, the plain, the riverboat, the moor, the cliff",
        "behind": "the church, the station, the theater, the school, the bakery, the town hall",
        "at the edge of": "the forest, the city, the park, the glacier, the great plain",
        "next to": "the library, the fountain, the railway, the bridge, the graveyard, the toy shop",
    }.items()
    for place in _list(places)
]  # fmt: skip
LANDMARKS = _list("lighthouse, mill, tower, bridge, castle, church, windmill, school, harbor, station, fountain, "
                  "orchard, lake, chapel, quarry, bakery, library, market, inn, temple")  # fmt: skip
LOOKS = _list("old, white, red, stone, ruined, little, round, great, crooked, silent, hidden, upper, yellow, famous")
TOWNS = (
    """Willow Oak Ash Maple Stone Fox Rook Elm Clover Thorn Winter Summer Raven Otter Silver Bramble Hazel Marsh North
    Cinder Honey Salt Linden Amber""".split(),
    "brook ford field ton wick dale port haven mouth wood bury gate".split(),
)
COLORS = _list("red, blue, green, yellow, silver, golden, wooden, tiny, old, striped, painted, copper, white, shiny, "
               "black, little")  # fmt: skip
LIGHT = _list("kite, hat, scarf, umbrella, balloon, ribbon, feather, paper bird, flag, cap, mitten, ball, shawl, mask")
HARD = _list("lantern, mirror, compass, cup, teapot, clock, wagon, bucket, music box, puppet, sled, chair, jar, bowl, "
             "toy boat, doll, lamp, rocking horse, globe, bird cage, ring, vase")  # fmt: skip
LOUD = _list("drum, bell, whistle, flute, trumpet, violin, harp, horn, gong, fiddle, guitar, banjo")
NOUNS = {"light": LIGHT, "hard": HARD, "loud": LOUD, "any": LIGHT + HARD + LOUD}
BEASTS = (_list("gray, brown, small, hungry, old, young, white, wild, black, thin"),
          _list("owl, fox, crow, magpie, squirrel, goat, dog, cat, hedgehog, donkey, goose, raven, mouse, rabbit, "
                "badger, otter, pony, parrot, turtle, lamb, duck, beaver, monkey, deer"))  # fmt: skip
HELPERS = (_list("old, kind, tall, quiet, young, wise, busy, funny"),
           _list("sailor, baker, teacher, farmer, shepherd, doctor, painter, miller, fisher, carpenter, tailor, "
                 "gardener, blacksmith, singer, nurse, cook, weaver, potter, pilot, captain, juggler, knight, ranger, "
                 "judge"))  # fmt: skip
FAMILY = _list("grandmother, grandfather, mother, father, aunt, uncle, big sister, big brother, cousin")
TRAITS = _list("curious, patient, brave, shy, cheerful, stubborn, clever, gentle, dreamy, careful, lively, honest, "
               "playful, bold, serious, funny")  # fmt: skip
HOBBIES = _list("drawing maps, collecting shells, singing songs, baking bread, climbing trees, counting stars, "
                "building dams, reading books, telling jokes, feeding birds, painting faces, flying kites, growing "
                "beans, folding paper, learning words, watching clouds, mending clocks, riding horses, catching "
                "frogs, picking berries")  # fmt: skip
FOODS = _list("warm bread, plum jam, honey cake, lentil soup, apple pie, goat cheese, roasted corn, berry pudding, "
              "nut bread, potato salad, sweet rice, carrot cake, fig jam, bean stew")  # fmt: skip
SPOTS = _list("under a basket, in a hollow log, inside an old boot, in a pile of straw, under a blanket, in a flower "
              "pot, on top of the cupboard, under a bench, inside a broken piano, behind the bookcase, behind the "
              "oven, on the window sill")  # fmt: skip
CORNERS = _list("behind the stove, beneath the stairs, in the wood shed, under the table, by the back door, behind a "
                "curtain, next to the well, under an apple tree, behind a wall, in the tall grass, beside the fence, "
                "in the cellar")  # fmt: skip
HEIGHTS = _list("in the top of a tree, on the tallest chimney, on a high wire, on the roof of a barn, on top of a "
                "pole, on a tall statue, on a high rock")  # fmt: skip
MENDERS = _list("pine glue, copper wire, red thread, warm wax, thin string, tiny nails, wet clay, birch bark, silver "
                "tape, blue paint")  # fmt: skip
CROPS = _list("pumpkin, turnip, cabbage, beet, melon, radish, carrot, onion")
FEELINGS = _list("sad, worried, angry, scared, nervous, puzzled, upset, lonely, cross, helpless")
SPANS = _list("three days, a week, five nights, two days, a month, four days, six nights, a year")
DRAGONS = _list("red, blue, green, yellow, silver, golden")
NEW = _list("bird house, wind chime, flower pot, picture frame, night light, money box")
WEATHER = {
    "windy": "the wind had died down", "rainy": "the rain had stopped", "foggy": "the fog had lifted",
    "sunny": "the sun was going down", "snowy": "the snow had begun to melt", "frosty": "the frost was gone",
    "cloudy": "the clouds had moved on", "hot": "it had grown cool", "cold": "it had grown warm",
    "stormy": "the storm was over", "misty": "the mist had cleared", "gray": "the sky had turned blue",
}  # fmt: skip
TIMES = _list("morning, afternoon, day, Monday, Sunday, Friday, spring day, summer day, autumn day, winter day")


# --- The grammar: [this|that] is a choice; a {slot} has one value all through a story --------------------------------


@dataclass(frozen=True)
class Way:
    """A way out of a problem.

    Attributes:
        key: Its name.
        turn: The third paragraph, in which things get better.
        end: How the last paragraph begins.
    """

    key: str
    turn: str
    end: str


@dataclass(frozen=True)
class Problem:
    """What goes wrong in a story.

    Attributes:
        key: Its name.
        title: What the story may be called.
        trouble: The second paragraph.
        ways: Ways out.
        nouns: Kind of the thing that it is about, a key of :data:`NOUNS`.
        topic: What people remember it by.
        owned: Whether the thing is there from the beginning.
        weather: What it must be; by default any.
        solitary: Whether there can be no friend in the first sentence.
    """

    key: str
    title: str
    trouble: str
    ways: tuple[Way, ...]
    nouns: str = "any"
    topic: str = "{thing}"
    owned: bool = False
    weather: str = ""
    solitary: bool = False


# Two first sentences: who and where, and then what that person is like.
PLAIN = """[{name} lived {at}|{name} lived {at}|{name} lived {at} with {his} {family}|{name} [grew up|had always
    lived] {at}]."""
DESCRIBED = """[[once|long ago|once upon a time], {a_trait} {kid} [named|called] {name} lived {at}|{at}, there [once
    |]lived {a_trait} {kid} [named|called] {name}|there was once {a_trait} {kid} [named|called] {name} who lived
    {at}|in a [small |]house {at} lived {a_trait} {kid} [named|called] {name}|{name} was {a_trait} {kid} who lived
    {at}]."""
OF_TWO = """[{name} and {other} lived {at}|{name} and {other} lived {at}|{name} and {his} friend {other} lived
    {at}|{at} lived {name} and {his} best friend {other}]."""
INTRO = """[{name} was {a_trait} {kid} who [liked|loved] {hobby}|{name} was [always|known to be] {trait} and
    [liked|loved] {hobby}]."""
INTRO_DESCRIBED = """[{he} [liked|loved] {hobby}[| with {his} {family}]|most of all, {he} [liked|loved] {hobby}|no
    other {kid} liked {hobby} so much]."""
INTRO_OWNED = """[{name} was {a_trait} {kid} who [liked|loved] {hobby} and {his} {thing}|{name} was {a_trait} {kid}
    and had {a_thing} from {his} {family}]."""
INTRO_DESCRIBED_OWNED = "[{he} [liked|loved] {hobby} and {his} {thing}|{his} {family} had given {him} {a_thing}]."
CLOSING = """[[in the end|from then on], {name} was the [happiest|proudest] {kid} {at}|[and so|in the end], {name}
    was {hobby} again {at}, {trait} as ever|[people|neighbors] {at} still [talk|tell stories] about {name} and the
    {topic}|[when night came|in the evening|that evening], {cleared}, and {name} fell asleep {at} with a smile|[that
    night|in the evening], {cleared}, and {name} and {his} {family} ate some {food} {at}|[now|today], when it is
    {weather} {at}, {name} thinks of the {topic}|{name} [told|wrote to] {his} {family} about it, and {at} [all was
    well|life was good] again]."""

PROBLEMS = (
    Problem(
        "lost", """[[the|a] lost {noun}|the lost {thing}|{name} and the lost {noun}|where is the {noun}?|{name}
        looks for the {thing}]""",
        """One {weather} {time}, the {noun} was [gone|missing]. {name} looked {spot2} and {corner}, but [found
        nothing|it was not there]. "[Where is my {thing}?|I have lost my {thing}!|Who has seen my {noun}?]"
        [cried|asked|said] {name}.""",
        (Way("sniffed out",
             """[After a while,|Soon|Then] {someone} [came by|stopped] with {a_beast}. "[Let us follow its nose|The
             {beast} can find anything]," said {other}. The {beast} [sniffed|looked] around and [ran|went] off.
             There lay the {thing}, {spot}!""",
             "{name} [hugged|thanked] the {beast} and never again left the {noun} {spot}."),
         Way("remembered",
             """{name} sat down to think with {someone}. "[I had it when I was {hobby}|I was {hobby} then]," said
             {name}. "[And I put it {spot}!|Then I left it {spot}!]" {He} ran home, and there was the {thing}, [a
             little dusty|safe and dry].""",
             """"[What you remember is not lost|It pays to think]," said {other}, and {name} laughed.""")), owned=True),
    Problem(
        "broken", """[[the|a] broken {noun}|{name} breaks the {noun}|the {thing} in pieces|{name} and the broken
        {thing}]""",
        """One {weather} {time}, {name} [tripped|slipped|fell], and the {noun} [broke in two|broke into
        pieces|cracked]. "[Oh no, my {thing}!|I have broken it!|It will never be whole again!]" {he} [cried|said].
        {name} [felt|was] {feeling} and [hid|kept] the pieces {spot}.""",
        (Way("mended",
             """[The next day|Later], {name} took them to {someone}. "[All we need is|We only need] some {mender},"
             said {other}. Together they worked [until dark|all evening], and with the {mender} the {noun} was whole
             again.""",
             "The {thing} smelled of {mender} now, but {name} liked it even better."),
         Way("made new",
             """{someone} [found the pieces|looked {spot}] and had an idea. "[It can be a {new}|Let us make a {new}
             of it]," said {other}. {name} fetched some {mender}, and [by evening|after an hour] the {thing} was a
             {new}.""",
             "The {new} was [even better|much nicer] than the {noun}.")), nouns="hard", owned=True),
    Problem(
        "stuck", "[the {noun} {height}|the {thing} {height}|{name} and the {noun} {height}|too high[| for {name}]]",
        """One {time}, the wind [took|carried off] the {thing} and left it {height}. {name} jumped and jumped but
        could not reach it. "[Come down, {noun}!|How can I get my {noun}?]" [called|cried] {name}.""",
        (Way("ladder",
             """[Then|After a while,] {someone} came with a ladder. "[You climb, and I hold it|I will hold it
             tight]," said {other}. {name} climbed up, step by step, and [took|got hold of] the {noun}.""",
             """"[I was not afraid|That was easy]!" said {name}, and {other} got some {food} for the ladder."""),
         Way("animal",
             """Then {a_beast} [came|looked on], and {name} gave it some {food}. The {beast} ate all the {food},
             went up, and pulled at the {noun} [again and again|until it moved]. Down came the {thing}!""",
             "Since that day, the {beast} gets some {food} from {name} every [morning|evening].")),
        nouns="light", owned=True, weather="windy"),
    Problem(
        "stolen", """[the stolen {noun}|the {beast} and the {noun}|the thief|who took the {thing}?|{name} and the
        {beast}]""",
        """One {weather} {time}, {a_beast} [took|grabbed] the {thing} and ran away with it. "[Stop, thief!|Give me
        back my {noun}!|That is my {noun}!]" [cried|shouted] {name}, but the {beast} was [faster|too fast]. {name}
        felt {feeling}.""",
        (Way("traded",
             """{name} followed [its tracks|the tracks of the {beast}] and found it {spot}. It [was only
             hungry|looked thin]. {He} put down some {food} and [waited|took a step back]. [Slowly|After a while],
             the {beast} came for the {food} and [let go of|dropped] the {noun}.""",
             "The {beast} never stole again, for {name} [gave|brought] it some {food} every day."),
         Way("played",
             """"[It does not want the {noun}|It only wants to play]," said {someone}. {name} [threw a stick|rolled
             a ball] {spot}. The {beast} dropped the {thing} and ran after it, [again and again|back and forth].""",
             "Now {name} plays with the {beast} every day, and {other} looks after the {noun}.")), owned=True),
    Problem(
        "hungry guest", """[the hungry {beast}|{a_beast} at the door|{name} and the {beast}|the {beast} who came to
        stay|a guest for {name}]""",
        """One {weather} {time}, {a_beast} stood at the door. It [was hungry|had not eaten] and had lost its way.
        "[Where do you come from?|Are you all alone?|You poor thing!]" [asked|said] {name} and felt [sorry for
        it|{feeling}].""",
        (Way("home found",
             """{name} gave the {beast} some {food} and a bed {corner}. {someone} knew where it [came from|lived].
             So {name} and {other} walked for {span}, and the {beast} walked between them, until it [saw|found] its
             [mother|family] again.""",
             "Every year, the {beast} comes back for some {food} and sleeps {corner}."),
         Way("stayed",
             """{name} gave it some {food} and [put|laid] {a_thing} {spot} for it to [play with|sleep by]. "[Nobody
             misses it|It has no home]," said {someone} after {span}. "[It can stay with you|Keep it]!" The {beast}
             jumped for joy.""",
             "The {beast} still sleeps {spot} beside the {thing}, and {name} is never alone.")), topic="{beast}"),
    Problem(
        "hurt animal", """[the {beast} that could not walk|the hurt {beast}|{name} helps {a_beast}|{name} and the
        {beast}|a bandage for the {beast}]""",
        """One {weather} {time}, {name} found {a_beast} {corner}. It [had hurt its leg|could not walk] and [looked
        up|did not move]. "[Do not be afraid|Keep still], little one," [whispered|said] {name}, who felt {feeling}.""",
        (Way("bandaged",
             """{name} carried the {beast} to {someone}. "[It will walk again|The leg will heal]," said {other}, and
             tied it up with some {mender}. For {span}, {name} fed it some {food}. Then the {beast} took [a step|its
             first step].""",
             "When it could run, the {beast} [brought|gave] {name} {a_thing}, and nobody knows where it found it."),
         Way("kept warm",
             """For {span}, {name} kept the {beast} warm and [sang to it|told it stories] about {a_thing}. {someone}
             came with some {food}. One day, [the bed was empty|it was gone], and the {beast} was [running|jumping]
             around the house.""",
             "The {beast} [comes to|visits] {name} every week, and they share some {food}.")), topic="{beast}"),
    Problem(
        "afraid of the dark", """[{name} and the dark|afraid of the dark|the {noun} in the night|a long night|{name}
        and the night]""",
        """{name} was afraid of the dark. Every {weather} night, {he} hid {corner} and [could not sleep|felt
        {feeling}]. "[Something is out there|I can hear steps]," {he} [whispered|said] to {his} {family}.""",
        (Way("a light",
             """One [night|evening], {someone} brought {a_thing} and put a candle [inside|behind it]. "[Look at the
             shadows|Now look]," said {other}. The {noun} threw shadows of {a_beast} and of [stars|trees] on the
             wall. [They danced all night|It was like a play].""",
             "{name} keeps the {thing} beside the bed and likes the shadow of the {beast} most."),
         Way("a friend",
             """One [night|evening], {name} heard a cry {corner2}. {He} took {a_thing} and [went to look|looked]. It
             was {a_beast}, and it was afraid of the dark too! "[Do not be afraid|I am here]," said {name}, and gave
             it some {food}.""",
             "Since then, {name} and the {beast} [look at the stars|sit in the dark] together and are not afraid.")),
        nouns="hard"),
    Problem(
        "alone", "[nobody to play with|{name} finds a friend|the {noun} for two|all alone|{name} and the {thing}]",
        """{name} had nobody to play with. Every {weather} {time}, {he} sat {corner} with the {noun}, and [the
        others ran past|nobody called {him}]. "[If only I had a friend|I wish somebody would come]," {he}
        [said|sighed] and felt {feeling}.""",
        (Way("shared",
             """Then {someone} came and sat down too. "[May I see your {noun}?|What a fine {noun}!]" said {other}.
             {name} [nodded|said yes]. They took turns with the {thing} and talked about {hobby} until dark.""",
             "Now {name} and {other} share the {noun}, some {food} and all their secrets."),
         Way("led by an animal",
             """Then {a_beast} came, [took|grabbed] the {noun} and ran. {name} ran after it, and the other children
             ran too. The {beast} stopped {corner2}. Everybody laughed. "[Play|Stay] with us!" they said.""",
             "The {beast} [got|was given] some {food}, and {name} is not alone any more.")), owned=True, solitary=True),
    Problem(
        "gift", """[a gift for {his} {family}|{name} and the gift|{name} makes a {noun}|{a_thing} for {his}
        {family}|no money for a gift]""",
        """It was [almost|nearly] the birthday of {his} {family}, but {name} had no money for a gift. One {weather}
        {time}, {he} stood at a shop window and felt {feeling}. "[What can I give?|I have only two coins!]" said
        {name}.""",
        (Way("handmade",
             """"[Make one yourself|Make one with me]," said {someone}, who had some {mender}. For {span}, {name}
             and {other} [worked|sat] {corner}, and [little by little|piece by piece] they made {a_thing}.""",
             """{his} {family} has many gifts but loves the {thing} most, though it [still smells of|is full of]
             {mender}."""),
         Way("earned",
             """So {name} went to {someone} and asked for work. For {span}, {he} fed {a_beast} and swept the floor.
             "[You have earned this|This is for you]," said {other}, and gave {him} {a_thing}.""",
             "{his} {family} [cried with joy|was very happy], and the {noun} stands next to the bed now."))),
    Problem(
        "lie", "[the {beast} did it|a small lie|{name} tells a lie|the truth about the {noun}|{name} and the truth]",
        """One {weather} {time}, {name} was {hobby} and broke the {thing} of {his} {family}. "[The {beast} did it|It
        was the {beast}]!" {he} said. [So|Now] the {beast} had to sleep outside, and {name} [felt|was] {feeling}.""",
        (Way("confessed",
             """{name} could not sleep. "[Tell the truth|A lie gets heavier every day]," said {someone}. In the
             morning, {name} told {his} {family} everything and [worked|paid] for {span}. Then {he} mended the
             {noun} with some {mender}.""",
             "The {beast} got a [bed|place] {corner} and some {food}, and {name} never lied again."),
         Way("found out",
             """At night, {name} took some {food} to the {beast}. "[I am sorry|Forgive me]," {he} [whispered|said].
             {someone} heard it. "[You know what to do now|Say it at home]," said {other}. {name} did, and {his}
             {family} [smiled|nodded].""",
             "The {beast} sleeps {corner} again, and the {thing} is held together by {mender}.")), nouns="hard"),
    Problem(
        "lost in the fog", """[the {noun} in the fog|lost in the fog|{name} in the fog|the sound of the
        {noun}|{name} hears {a_noun}]""",
        """One {time}, {name} was on the way home when thick fog came up. {He} could not see {his} own feet and felt
        {feeling}. "[Is anybody there?|Where am I?|Can anybody hear me?]" [called|cried] {name}.""",
        (Way("a sound",
             """Far away, {someone} took {a_thing} and [played|made it sound] as loud as it would go. {name}
             [heard|listened to] the {noun} and followed the sound, step by step, [past the rocks|over the stones],
             until {he} [saw|stood before] {other}.""",
             """"[Without the {noun} I would still be there|The {noun} saved me]," said {name}, and {other}
             [smiled|laughed]."""),
         Way("a guide",
             """Then {a_beast} came out of the fog with {a_thing} around its neck. "[You know the way|Take me
             home]," said {name}. The {noun} [sounded|swung] at each step, and {name} followed the {beast} until
             {he} saw {someone} with a light.""",
             "The {beast} got some {food}, and {name} never goes out without {a_noun} now.")),
        nouns="loud", weather="foggy"),
    Problem(
        "quarrel", """[the quarrel over the {noun}|the quarrel|{name} is angry|one {noun} for two|the {thing} and
        the quarrel]""",
        """One {weather} {time}, {name} and {someone} quarreled over {a_thing}. "[It is mine!|I saw it first!|You
        always take everything!]" they [shouted|said]. For {span}, they said [nothing more|not a word], and {name}
        felt {feeling}.""",
        (Way("a note",
             """Then {name} [took|cooked] some {food} and put it {corner} with a note for {other}. It said, "[I am
             sorry|You can have it]." [Soon|In the evening], the {food} was gone, and there lay the {thing} and a
             note, "[So am I|We can share]." """,
             "Now the {noun} [lies|stays] {corner}, where {name} and {other} can both [get|find] it."),
         Way("taking turns",
             """"[Take turns|One day for each of you]," said {his} {family}. Even {a_beast} [got|had] its day with
             the {noun}. Soon {name} and {other} forgot whose turn it was and used the {noun} together.""",
             "{name} and {other} [laugh about|have forgotten] the quarrel, and the {thing} belongs to both."))),
    Problem(
        "illness", """[some {food} for {his} {family}|{name} cooks some {food}|{name} and the {food}|{name} by the
        bed|how {his} {family} got well]""",
        """One {weather} {time}, {his} {family} was ill and [could not get up|did not speak]. {name} [sat by the
        bed|brought a pillow] and felt {feeling}. "[What can I do for you?|What would make you well?]" {he} asked.""",
        (Way("cooked",
             """{his} {family} [wanted|asked for] some {food}. {name} had never made it before, so {someone} [came
             to help|showed {him} how]. They found a pot {spot} and cooked all day. {his} {family} ate the {food}
             and [asked for more|smiled].""",
             "After {span}, {his} {family} was well, and {name} can cook the best {food} of all."),
         Way("cheered up",
             """{name} took {a_thing} and played a song. It sounded [wrong|strange], like {a_beast} in the rain.
             {his} {family} had to [laugh|smile]. So {name} played the {noun} for {span}, and {someone} brought some
             {food}.""",
             "{his} {family} is well again but still wants to hear the {noun} every Sunday.")),
        nouns="loud", topic="{food}"),
    Problem(
        "race", "[the race|the great race|{name} and the race|the slowest {kid}|{name} and the {beast}]",
        """One {weather} {time}, {name}, the slowest {kid} of all, heard of a race. It was in {span}, and the winner
        would get {a_thing}. "[You will come last|Do not even try]," [said|laughed] the others. {name} felt
        {feeling}.""",
        (Way("practiced",
             """Every morning, {name} ran after {a_beast}. "[Faster|A little faster]!" [called|said] {someone}. On
             the day of the race, {name} thought of the {beast}, ran [and ran|as never before], and won. {other}
             [cheered|clapped].""",
             "The {thing} stands {corner} now, and {name} still runs with the {beast}."),
         Way("stopped to help",
             """On the day of the race, {name} saw {someone} {corner}. "[My foot hurts|I cannot get up]," said
             {other}. {name} [stopped|forgot the race] and helped. They came in last, with {a_beast} behind them,
             but everybody clapped.""",
             "The winner gave the {thing} to {name}, and {other} cooked some {food}."))),
    Problem(
        "locked door", """[the locked door|the key in the {noun}|{name} and the locked door|the door that would not
        open|what is behind the door?]""",
        """{name} knew a door that nobody could open. One {weather} {time}, {he} pushed and pulled, but it [stayed
        shut|did not move]. "[What is behind it?|There must be a key!|Open up!]" [said|cried] {name}, who felt
        {feeling}.""",
        (Way("key found",
             """{someone} had {a_thing} that [made a strange noise|was too heavy]. "[Shake it|Look inside]," said
             {other}. Out of the {noun} fell a key! It [turned|fit]. Behind the door, {a_beast} slept {corner},
             [warm and safe|with six little ones].""",
             "{name} left the door open for the {beast} and put the key back into the {thing}."),
         Way("small helper",
             """{a_beast} had watched {him}. It went in through a hole and [pushed|pulled]. Then something clicked,
             and the door was open. Inside, {corner}, stood {a_thing}, [covered with dust|shining in the light].""",
             "{someone} had missed the {noun} for {span} and gave {name} and the {beast} some {food}.")), nouns="hard"),
    Problem(
        "noise", "[[the|a] noise in the night|{name} hears a noise|who knocks at night?|the noise {corner}]",
        """Every {weather} night, {name} heard a noise {corner}. It [knocked|scratched] and stopped and
        [knocked|scratched] again. "[Is it a ghost?|Who is there?|What can it be?]" [whispered|asked] {name}, who
        felt {feeling}.""",
        (Way("animal",
             """[At last|After {span}], {name} took a lamp and went to look with {someone}. Two eyes [shone|looked
             at them]. "[That is no ghost|Look]!" said {other}. It was {a_beast} [with three little ones|in a nest],
             and it was tapping on {a_thing}.""",
             "The {beast} may stay {corner}, but {name} has put the {thing} somewhere else."),
         Way("thing",
             """[At last|After {span}], {name} and {someone} went to look. There was only {a_thing}, and when the
             wind [blew|came in], it fell over. "[So much noise from one {noun}|That is your ghost]!" said {other},
             and they laughed.""",
             "{name} tied the {noun} up with some {mender}, and {a_beast} sleeps {corner} now."))),
    Problem(
        "map", "[the old map|the treasure|{name} and the map|the treasure {corner}|{name} finds a map]",
        """One {weather} {time}, {name} found an old map inside {a_thing}. There was a cross on it. "[A treasure
        {corner}!|It is {corner}!]" [cried|said] {name}. {He} could not sleep and packed some {food}.""",
        (Way("dug up",
             """{someone} brought a shovel. For {span}, {name} and {other} [dug|looked] in the wrong place. Then
             {a_beast} began to scratch {corner}. There was a box, and a letter in it said, "[Well done|You are
             clever]!" """,
             "It was from {his} {family}, and {name} keeps it in the {noun}."),
         Way("better than gold",
             """{name} and {someone} followed the map for {span}. {corner}, they found no gold, only {a_beast} that
             had been caught. {name} set it free and gave it some {food}. "[That is better than gold|What a
             treasure]!" said {other}.""",
             "The {beast} follows {name} everywhere, and the map is in the {thing} again.")),
        nouns="hard", topic="old map"),
    Problem(
        "heavy crop", """[[the|a] giant {crop}|the great {crop}|{name} and the giant {crop}|{a_crop} as big as a
        house|the {crop} that would not move]""",
        """One {weather} {time}, {name} saw that {a_crop} in the garden had become as big as a [house|wagon]. {He}
        pulled and pulled, but the {crop} did not move. "[It is too heavy for me|I cannot do it alone]," said {name}
        and felt {feeling}.""",
        (Way("together",
             """{someone} pulled too, and {his} {family} pulled, but the {crop} did not move. Then {a_beast} came
             and pulled as well. [One, two, three|Pop]! The {crop} flew out and [rolled away|knocked over
             {a_thing}].""",
             "{name} and the others ate {crop} for {span}, and the {beast} got the best [piece|part]."),
         Way("a trick",
             """"[We need no strength|Do not pull]," said {someone}. {name} and {other} put {a_thing} under the
             {crop} and dug around it. {a_beast} [sat|jumped] on the other end, and up went the {crop}!""",
             "{name} made a house for the {beast} out of the {crop}, and {other} got the rest.")),
        nouns="hard", topic="giant {crop}"),
    Problem(
        "dry garden", "[no rain[| for {span}]|the dry garden|{name} and the thirsty {crop}|water for the {crop}]",
        """It had not rained for {span}. In the garden, each {crop} [turned yellow|hung down]. "[They need water|We
        need rain]," said {name}, who felt {feeling}, for {he} had planted them all.""",
        (Way("spring",
             """One {time}, {name} saw {a_beast} dig a hole {corner}. The ground was wet there! {someone} came, and
             they dug [all day|until evening]. Clear water [ran|flowed] to the last {crop}.""",
             "{name} and {other} ate {crop} with some {food}, and the {beast} drinks there every day."),
         Way("carried",
             """Every {time}, {name} filled {a_thing} with water and carried it to the garden. {someone}
             [helped|came too], and even {a_beast} carried a [drop|little]. Not one {crop} died.""",
             "They ate {crop} and some {food} under the stars, and drank from the {noun}.")),
        nouns="hard", topic="{crop}", weather="hot"),
    Problem(
        "stage fright", """[{name} plays the {noun}|the concert|{name} and the {thing}|a song for everybody|the
        night of the concert]""",
        """One {weather} {time}, {name} was to play the {noun} at the concert. {He} felt {feeling} and hid {corner}.
        "[I cannot go out there|Everybody will laugh]," {he} [said|whispered].""",
        (Way("one listener",
             """"[Play only for me|Look only at me]," said {someone}. {name} took the {thing}, looked at {other},
             and played. The {noun} sounded like {a_beast} in spring. Everybody [stood up|clapped].""",
             "Since then, {other} sits in the first row when {name} plays the {noun}."),
         Way("animal joins",
             """Then {a_beast} walked onto the stage and made a [terrible|funny] noise. {name} came out,
             [lifted|took] the {thing} and played along, and the {beast} sang to the {noun}. It was the best song of
             the night.""",
             "The {beast} got some {food}, and {name} was never afraid again.")), nouns="loud", owned=True),
    Problem(
        "leaking roof", "[[the|a] hole in the roof|rain in the house|{name} and the leaking roof|drip, drip, drip]",
        """One {time}, the rain came through a hole in the roof. {name} put {a_thing} under it, but the {noun} was
        full [in an hour|too soon]. "[We will drown|It will not stop]!" said {his} {family}. {name} felt {feeling}.""",
        (Way("patched",
             """{name} ran to {someone}, who [had|brought] some {mender}. They climbed up and [closed|covered] the
             hole with the {mender} and the {noun}.""",
             "The {thing} is in the roof to this day, and {a_beast} lives there."),
         Way("music",
             """But each drop [made|gave] another sound in the {noun}. {name} made a song of it. {someone} heard the
             song and came, and {a_beast} followed. They all mended the roof with some {mender}, and {other} sang.""",
             "The roof is dry now, and {name} plays the rain song on the {noun}.")), nouns="hard", weather="rainy"),
    Problem(
        "empty stall", """[nobody buys the {food}|{food} for sale|the best {food}|{name} sells some {food}|{name}
        and the {food}]""",
        """One {weather} {time}, {name} [made|cooked] some {food} and wanted to sell it, but nobody [bought
        any|stopped]. "[Fresh {food}!|Who wants to try some {food}?]" [called|cried] {name} for {span} and felt
        {feeling}.""",
        (Way("tasted",
             """Then {someone} stopped and tried a little. "[Everybody must try this|This is the best {food} of
             all]!" [shouted|said] {other} so loud that {a_beast} jumped. People came running, and soon [nothing was
             left|it was all sold].""",
             "With the money, {name} bought {a_thing} for {his} {family}."),
         Way("music",
             """So {name} took {a_thing} and played. {a_beast} began to dance to the {noun}. People stopped to look,
             and then they [smelled|saw] the {food}. {someone} bought the last of it.""",
             "{name} still sells {food}, and the {beast} still dances to the {noun}.")), nouns="loud", topic="{food}"),
    Problem(
        "dragon", """[the dragon with a cold|the {color} dragon|{name} and the dragon|{name} meets a dragon|the
        dragon {corner}]""",
        """One {weather} {time}, a {color} dragon sat {corner}. It had a cold, and when it sneezed, it set fire to
        {a_thing}. "[Run away!|We are all lost!]" [cried|shouted] {someone}. But {name} [stayed|came nearer].""",
        (Way("soup",
             """"[What you need is some {food}|Some {food} will help]," said {name}. {He} cooked the whole night,
             and {other} brought water. The dragon ate a mountain of {food}, and for {span} it [slept|did not
             sneeze].""",
             "The {color} dragon lights the fire for {name} now, if it gets some {food}."),
         Way("scarf",
             """"[Your neck is cold|You must keep warm]," said {name}. With {other}, {he} knitted for {span}. They
             [gave|tied] a long scarf to the {color} dragon. It sneezed once more, and {a_beast} laughed.""",
             "The {color} dragon still wears the scarf and brought {name} a new {noun}.")), topic="{color} dragon"),
    Problem(
        "letter", """[the wrong letter|a letter for somebody else|{name} and the letter|the letter|{name} brings a
        letter]""",
        """One {weather} {time}, {name} got a letter, but it was for {someone}, who lived far away. "[It may be
        important|Somebody is waiting for it]," said {name}. {He} [took|packed] some {food} and left.""",
        (Way("delivered",
             """{He} walked for {span} and slept {corner}. At last, {other} opened the door, read the letter
             [aloud|twice], and cried with joy. "[My child is coming home|I have waited so long]!" said {other}, and
             gave {name} {a_thing}.""",
             "Each time {name} looks at the {thing}, a letter has come from {other}."),
         Way("by animal",
             """On the way stood {a_beast} that looked tired. {name} shared the {food} with it. Then the {beast}
             carried {him} for {span}, [over the hills|without a stop], to {other}. In the letter was a picture of
             {a_thing}.""",
             """"[I lost that {noun} as a child|That was my {noun}]," said {other}, and became a friend of {name}.""")),
        topic="letter", solitary=True),
    Problem(
        "wish", """[the {noun} that granted a wish|one wish|the magic {noun}|{name} and the magic {noun}|the {thing}
        and the wish]""",
        """One {weather} {time}, {name} found {a_thing} {spot}. "[You have one wish|I grant one wish]," it said.
        {name} [thought|could not decide] for {span} and felt {feeling}.""",
        (Way("for another",
             """Then {name} met {someone}, who had lost {a_beast}. "[I wish the {beast} came back|Let the {beast}
             come home]," said {name} to the {noun}. And the {beast} [stood|sat] {corner}, as if nothing had
             happened.""",
             "The {thing} is [only|just] a plain {noun} now, but {other} brings some {food} every week."),
         Way("not needed",
             """"[What did you wish for?|And what is your wish?]" asked {someone}. {name} looked at {his} {family},
             at {a_beast}, at the {food} on the table. "[Nothing|I have everything]," {he} said, and put the {noun}
             back {spot}.""",
             "The {thing} is still {spot}, and {other} says that it smiles.")), nouns="hard"),
)  # fmt: skip


# --- Stories ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """A story and what it keeps to.

    Attributes:
        title: In small letters, but for names.
        name: Of the one whom it is about.
        place: Where it happens.
        problem: Key of a :class:`Problem`.
        resolution: Key of one of its ways.
        text: All of it, with or without the title.
        opening: The text up to the end of the first sentence.
    """

    title: str
    name: str
    place: str
    problem: str
    resolution: str
    text: str
    opening: str


@dataclass(frozen=True)
class Prompt:
    """How a story begins.

    Attributes:
        text: Title, if there is one, and first sentence.
        name: Who is in it.
        place: Where.
    """

    text: str
    name: str
    place: str


@functools.cache
def _flat(template: str) -> str:
    return " ".join(template.split())


def _chosen(template: str, rng: random.Random) -> str:
    """Choose among the alternatives in brackets, the innermost first."""
    text = _flat(template)
    while "[" in text:
        text = re.sub(r"\[([^\[\]]*)\]", lambda match: rng.choice(match[1].split("|")), text)
    return text


def count_choices(template: str) -> int:
    """Return how many texts the brackets of a template allow."""
    totals, products = [0], [1]  # of each open bracket: of the alternatives before, and of the one that goes on
    for letter in _flat(template):
        if letter == "[":
            totals.append(0)
            products.append(1)
        elif letter == "|":
            totals[-1] += products[-1]
            products[-1] = 1
        elif letter == "]":
            inside = totals.pop() + products.pop()
            products[-1] *= inside
    return totals[0] + products[0]


def _capitalized(text: str) -> str:
    """Begin sentences with capital letters, quoted ones too."""
    return re.sub(r'((?:^|[.!?] |\n)"?| ")([a-z])', lambda match: match[1] + match[2].upper(), text)


SMALL = frozenset("a an and at by for from in is not of on or that the to who with".split())


def _headline(title: str, rng: random.Random) -> str:
    """Write a title as headlines are, as a sentence or, as people type a topic, in small letters."""
    style = rng.random()
    if style < 0.6:
        words = title.split(" ")
        return " ".join(w if i and w in SMALL else w[:1].upper() + w[1:] for i, w in enumerate(words))
    return title if style < 0.8 else title[:1].upper() + title[1:]


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" or noun.startswith("honest") else "a ") + noun


def _name(rng: random.Random) -> tuple[str, str]:
    """Draw a name, and whether it is a girl's or a boy's."""
    kid = rng.choice(("girl", "boy"))
    if rng.random() < INVENTED:
        made = rng.choice(STARTS) + rng.choice(MIDDLES) + rng.choice(ENDS[kid])
        if made not in _KNOWN:  # "Tamar" is what a boy would be called here
            return made, kid
    return rng.choice(GIRLS if kid == "girl" else BOYS), kid


def _place(rng: random.Random) -> tuple[str, str]:
    """Draw a place, and the preposition that goes with it."""
    kind = rng.random()
    if kind < 0.4:
        preposition, place = rng.choice(PLACES)
    elif kind < 0.7:
        preposition, place = rng.choice(("near", "by", "behind")), f"the {rng.choice(LOOKS)} {rng.choice(LANDMARKS)}"
    else:
        preposition, place = "in", rng.choice(TOWNS[0]) + rng.choice(TOWNS[1])
    return place, preposition


def split_of(name: str, place: str, problem: str) -> Split:
    """Return the split of a combination, from a hash of it."""
    digest = hashlib.blake2b(f"{name}|{place}|{problem}".encode(), digest_size=8).digest()
    return HELD_OUT.get(int.from_bytes(digest, "big") % 20, "train")  # type: ignore[return-value]


def _slots(kid: str, problem: Problem, friend: bool, rng: random.Random) -> dict[str, str]:
    """Give each slot the value that it has all through a story."""
    he, him, his = PRONOUNS[kid]
    noun, beast, helper = rng.choice(NOUNS[problem.nouns]), rng.choice(BEASTS[1]), rng.choice(HELPERS[1])
    weather = problem.weather or rng.choice(list(WEATHER))
    spots, corners = rng.sample(SPOTS, 2), rng.sample(CORNERS, 2)
    slots = {
        "kid": kid, "he": he, "him": him, "his": his, "He": he.capitalize(), "noun": noun,
        "thing": f"{rng.choice(COLORS)} {noun}",
        "beast": beast, "a_beast": _article(f"{rng.choice(BEASTS[0])} {beast}"),
        "spot": spots[0], "spot2": spots[1], "corner": corners[0], "corner2": corners[1],
        "weather": weather, "cleared": WEATHER[weather], "time": rng.choice(TIMES), "span": rng.choice(SPANS),
        "trait": rng.choice(TRAITS), "hobby": rng.choice(HOBBIES), "family": rng.choice(FAMILY),
        "feeling": rng.choice(FEELINGS), "food": rng.choice(FOODS), "crop": rng.choice(CROPS),
        "height": rng.choice(HEIGHTS), "mender": rng.choice(MENDERS), "new": rng.choice(NEW),
        "color": rng.choice(DRAGONS),
    }  # fmt: skip
    slots |= {f"a_{slot}": _article(slots[slot]) for slot in ("noun", "thing", "trait", "crop")}
    buddy = rng.choice(FRIENDS)
    slots["someone"] = buddy if friend else _article(f"{rng.choice(HELPERS[0])} {helper}")
    slots["other"] = buddy if friend else f"the {helper}"
    slots["topic"] = problem.topic.format_map(slots)
    return slots


def story(rng: random.Random, split: Split | None = None) -> Story:
    """Tell a story.

    Args:
        rng: What it draws from.
        split: Of which split its name, place and problem must be; by default of any.
    """
    while True:
        (name, kid), (place, preposition), problem = _name(rng), _place(rng), rng.choice(PROBLEMS)
        if split is None or split_of(name, place, problem.key) == split:
            break
    friend = not problem.solitary and rng.random() < WITH_FRIEND
    described = not friend and rng.random() < 0.55
    slots = _slots(kid, problem, friend, rng) | {"name": name, "at": f"{preposition} {place}"}
    first = OF_TWO if friend else DESCRIBED if described else PLAIN
    intro = (INTRO_DESCRIBED, INTRO_DESCRIBED_OWNED) if described else (INTRO, INTRO_OWNED)
    way = rng.choice(problem.ways)

    def told(template: str) -> str:
        return _capitalized(_chosen(template, rng).format_map(slots).strip())

    title = _chosen(problem.title, rng).format_map(slots)
    begin = f"Title: {_headline(title, rng)}\n\n" if rng.random() >= UNTITLED else ""
    opening = begin + told(first)
    last = f"{told(way.end)} {told(CLOSING)}"
    text = "\n\n".join((f"{opening} {told(intro[problem.owned])}", told(problem.trouble), told(way.turn), last))
    return Story(title, name, place, problem.key, way.key, text, opening)


def _told(split: Split, count: int, seed: int) -> Iterator[Story]:
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}. Got {split!r}.")
    check_range("count", count, 0)
    rng = random.Random(f"stories {split} {seed}")
    return (story(rng, split) for _ in range(count))


def stories(count: int, seed: int = 0, split: Split = "train") -> Iterator[str]:
    """Tell stories of a split; another seed tells others.

    Raises:
        InputError: There is no such split, or the count is negative.
    """
    return (one.text for one in _told(split, count, seed))


def prompts(split: Split, count: int, seed: int = 0) -> Iterator[Prompt]:
    """Yield the beginnings of stories of a split.

    Raises:
        InputError: There is no such split, or the count is negative.
    """
    return (Prompt(one.opening, one.name, one.place) for one in _told(split, count, seed))


def check(text: str, name: str, place: str) -> bool:
    """Whether a story keeps to its name and place: both are in its last paragraph, and nobody else has taken over.

    Args:
        text: With the prompt. A story of one paragraph has not got anywhere.
        name: As in the prompt.
        place: As in the prompt, without the preposition.
    """
    paragraphs = [part for part in text.strip().split("\n\n") if part.strip() and not part.startswith("Title:")]
    if len(paragraphs) < 2 or set(re.findall(r"\w+", text)) & _KNOWN - {name, *name.split()}:
        return False
    return all(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", paragraphs[-1]) for one in (name, place))


def count_stories() -> int:
    """Return how many ways there are to tell a story, choices that a problem does not use left out."""
    names = len(GIRLS) + len(BOYS) + len(STARTS) * len(MIDDLES) * sum(map(len, ENDS.values()))
    places = len(PLACES) + 3 * len(LOOKS) * len(LANDMARKS) + math.prod(map(len, TOWNS))
    lists = {"weather": WEATHER, "trait": TRAITS, "hobby": HOBBIES, "family": FAMILY, "food": FOODS, "height": HEIGHTS,
             "mender": MENDERS, "crop": CROPS, "feeling": FEELINGS, "span": SPANS, "time": TIMES, "color": DRAGONS,
             "new": NEW, "spot": SPOTS, "spot2": SPOTS[1:], "corner": CORNERS, "corner2": CORNERS[1:]}  # fmt: skip
    sizes = {slot: len(its) for slot, its in lists.items()}
    sizes |= {"beast": math.prod(map(len, BEASTS)), "other": math.prod(map(len, HELPERS))}
    same = {"cleared": "weather", "a_trait": "trait", "a_crop": "crop", "a_beast": "beast", "someone": "other"}
    same |= dict.fromkeys(("noun", "a_noun", "a_thing"), "thing")
    total = 0
    for problem in PROBLEMS:
        sizes["thing"] = len(NOUNS[problem.nouns]) * len(COLORS)
        for way in problem.ways:
            templates = (problem.title, PLAIN, INTRO, problem.trouble, way.turn, way.end, CLOSING)
            used = {same.get(slot, slot) for slot in re.findall(r"\{(\w+)\}", "".join(templates))}
            total += math.prod(map(count_choices, templates)) * math.prod(sizes.get(slot, 1) for slot in used)
    return names * places * total


# --- Commands ---------------------------------------------------------------------------------------------------------


@dataclass
class ShowConfig:
    """Print stories."""

    split: Split = "train"
    """Of which split."""
    count: int = 3
    """How many, >= 1."""
    seed: int = 0
    """Another one tells others."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_range("count", self.count, 1)


def show(config: ShowConfig) -> None:
    """Print stories; see :class:`ShowConfig`."""
    for text in stories(config.count, config.seed, config.split):
        sys.stdout.write(f"{text}\n\n\n")


if __name__ == "__main__":
    run_commands({"show": show}, module=MODULE, extra="generation")
