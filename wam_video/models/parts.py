"""The parts of a network, by the names of its parameters: what may be frozen, trained at a rate of its own, or adapted."""

from wam_video.models.backbones import NEW

PARTS = ("trunk", "expert", "embodiment", "conditioning", "text", "lora", "teacher")
"""`embodiment` is what a video network does not have (`backbones.NEW`); `lora` are an adapter's matrices, wherever they
are; `text` is the text encoder, if it is trained along; `teacher` is the head that a teacher is heard through, which only
training has; `trunk` is the rest."""


def plain_name(name: str) -> str:
    """Return a parameter's name in the network: without the trainer's module around it, or an adapter's layer inside.

    >>> plain_name("transformer.blocks.0.attn1.to_q.base_layer.weight")
    'blocks.0.attn1.to_q.weight'
    """
    return name.removeprefix("transformer.").replace(".base_layer.", ".")


def part_of(name: str) -> str:
    """Return the part, one of `PARTS`, that a parameter belongs to."""
    path = plain_name(name).split(".")
    if any(step.startswith("lora_") for step in path):
        return "lora"
    if path[0] == "text_encoder":
        return "text"
    if path[0] == "head":
        return "teacher"
    if "expert" in path:
        return "expert"
    if path[0] == "condition_embedder":
        return "conditioning"
    return "embodiment" if {f"{path[0]}.", path[0], path[-1]} & set(NEW) else "trunk"
