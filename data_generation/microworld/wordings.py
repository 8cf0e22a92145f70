"""The wordings of each kind of question, with their answers."""

# (question, answer) of each kind; a capital slot is the word with a capital.
WORDINGS: dict[str, tuple[tuple[str, str], ...]] = {
    "colour": (
        ("What colour is the {shape}?", "The {shape} is {colour}."),
        ("Which colour does the {shape} have?", "It is {colour}."),
        ("Tell me the colour of the {shape}.", "{Colour}."),
    ),
    "shape": (
        ("What shape is the {colour} object?", "The {colour} object is a {shape}."),
        ("Which shape does the {colour} object have?", "It is a {shape}."),
        ("What is the {colour} thing?", "A {shape}."),
    ),
    "size": (
        ("What size is the {pair}?", "The {pair} is {size}."),
        ("How big is the {pair}?", "It is {size}."),
        ("Is the {pair} small or large?", "{Size}."),
    ),
    "where": (
        ("Where is the {pair}?", "The {pair} is at the {cell}."),
        ("In which part of the picture is the {pair}?", "It is at the {cell}."),
        ("Where do you see the {pair}?", "At the {cell}."),
    ),
    "at": (
        ("What is at the {cell}?", "A {thing}."),
        ("Which object is at the {cell}?", "It is a {thing}."),
        ("What do you see at the {cell}?", "There is a {thing}."),
    ),
    "exist": (
        ("Is there a {pair}?", "{Yes}, there is {a} {pair}."),
        ("Does the picture show a {pair}?", "{Yes}, it {does}."),
        ("Do you see a {pair}?", "{Yes}."),
    ),
    "count": (
        ("How many {things} are there?", "There {are}."),
        ("How many {things} do you see?", "{Number}."),
        ("Count the {things}.", "{Number} {things_}."),
    ),
    "relation": (
        ("What is {side} the {pair}?", "A {other}."),
        ("Which object is {side} the {pair}?", "It is a {other}."),
        ("What do you see {side} the {pair}?", "There is a {other}."),
    ),
    "same": (
        ("Do the {a} and the {b} have the same colour?", "The {a} is {ca} and the {b} is {cb}, so {yes}."),
        ("Is the {a} of the same colour as the {b}?", "The {a} is {ca} and the {b} is {cb}, so it {is}."),
    ),
    "remove": (
        (
            "If all {colour} objects are removed, how many objects remain?",
            "There are {total} objects and {number} of them {is} {colour}, so {rest} {remain}.",
        ),
        (
            "How many objects are not {colour}?",
            "There are {total} objects and {number} of them {is} {colour}, so {rest} {are} not.",
        ),
    ),
    "more": (
        ("Are there more {a} or more {b}?", "There {counts}, so {result}."),
        ("Compare the number of {a} with that of {b}.", "There {counts}, so {result}."),
    ),
    "move": (
        (
            "How do I get from the {a} to the {b}?",
            "The {a} is at the {from} and the {b} is at the {to}, so move {way}.",
        ),
        (
            "In which direction is the {b} from the {a}?",
            "The {a} is at the {from} and the {b} is at the {to}, so it is {way}.",
        ),
    ),
    # One answer to all of them, since a teacher writes it without the question.
    "detail": (
        ("Describe the picture in detail.", "The picture shows {number} objects. {all}"),
        ("What do you see? Tell me everything.", "The picture shows {number} objects. {all}"),
        ("Tell me what is in the picture and where.", "The picture shows {number} objects. {all}"),
    ),
    "brief": (
        ("Describe the picture in short.", "{List}."),
        ("What does the picture show?", "The picture shows {list}."),
        ("What do you see?", "I see {list}."),
    ),
}
KINDS = tuple(WORDINGS)
LOOK_UPS = ("colour", "shape", "size", "where", "at", "exist", "count", "relation")
REASONING = ("same", "remove", "more", "move")
