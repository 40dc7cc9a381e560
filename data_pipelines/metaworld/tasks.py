"""The fifty tasks: what each is told to do, and groups of them that have a name."""

from wam_video.errors import ConfigError, one_of

PROMPTS: dict[str, str] = {
    "assembly-v3": "pick up the nut and place it onto the peg",
    "basketball-v3": "dunk the basketball into the basket",
    "bin-picking-v3": "move the cube from one bin to the other",
    "box-close-v3": "grasp the cover and close the box with it",
    "button-press-topdown-v3": "press the button from the top",
    "button-press-topdown-wall-v3": "go over the wall and press the button from the top",
    "button-press-v3": "press the button",
    "button-press-wall-v3": "go around the wall and press the button",
    "coffee-button-v3": "push the button of the coffee machine",
    "coffee-pull-v3": "pull the mug away from the coffee machine",
    "coffee-push-v3": "push the mug under the coffee machine",
    "dial-turn-v3": "turn the dial by half a turn",
    "disassemble-v3": "lift the nut off the peg",
    "door-close-v3": "close the door",
    "door-lock-v3": "lock the door by turning the lock clockwise",
    "door-open-v3": "open the door",
    "door-unlock-v3": "unlock the door by turning the lock counter-clockwise",
    "hand-insert-v3": "insert the gripper into the hole",
    "drawer-close-v3": "push the drawer closed",
    "drawer-open-v3": "open the drawer",
    "faucet-open-v3": "turn the faucet counter-clockwise",
    "faucet-close-v3": "turn the faucet clockwise",
    "hammer-v3": "hammer the screw into the wall",
    "handle-press-side-v3": "press the handle down from the side",
    "handle-press-v3": "press the handle down",
    "handle-pull-side-v3": "pull the handle up from the side",
    "handle-pull-v3": "pull the handle up",
    "lever-pull-v3": "pull the lever up",
    "pick-place-wall-v3": "pick up the puck, lift it over the wall and bring it to the goal",
    "pick-out-of-hole-v3": "pick the puck out of the hole",
    "pick-place-v3": "pick up the puck and bring it to the goal",
    "plate-slide-v3": "slide the plate into the cabinet",
    "plate-slide-side-v3": "slide the plate sideways into the cabinet",
    "plate-slide-back-v3": "pull the plate back out of the cabinet",
    "plate-slide-back-side-v3": "pull the plate sideways out of the cabinet",
    "peg-insert-side-v3": "insert the peg sideways into the hole",
    "peg-unplug-side-v3": "pull the peg sideways out of the hole",
    "soccer-v3": "kick the ball into the goal",
    "stick-push-v3": "grasp the stick and push the box with it",
    "stick-pull-v3": "grasp the stick and pull the box with it",
    "push-v3": "push the puck to the goal",
    "push-wall-v3": "push the puck around the wall to the goal",
    "push-back-v3": "pull the puck back to the goal",
    "reach-v3": "reach the goal position",
    "reach-wall-v3": "go around the wall and reach the goal position",
    "shelf-place-v3": "pick up the puck and place it onto the shelf",
    "sweep-into-v3": "sweep the puck into the hole",
    "sweep-v3": "sweep the puck off the table",
    "window-open-v3": "slide the window open",
    "window-close-v3": "slide the window closed",
}

_EASY = "reach push drawer-open drawer-close button-press-topdown window-open window-close door-open"
_MT10 = f"{_EASY} pick-place peg-insert-side"

GROUPS: dict[str, tuple[str, ...]] = {
    "all": tuple(PROMPTS),
    "easy": tuple(f"{name}-v3" for name in _EASY.split()),
    "mt10": tuple(f"{name}-v3" for name in _MT10.split()),
}
"""`mt10` is the benchmark's own ten; `easy` leaves out the two that need a firm grasp."""


def parse_tasks(what: str) -> tuple[str, ...]:
    """Return the tasks that `reach,push-v3`, `mt10` or `all` name, each once; nothing means `easy`.

    Raises:
        ConfigError: There is no such task.
    """
    chosen: dict[str, None] = {}
    for part in filter(None, (part.strip() for part in (what or "easy").split(","))):
        if part in GROUPS:
            chosen.update(dict.fromkeys(GROUPS[part]))
            continue
        name = part if part.endswith("-v3") else f"{part}-v3"
        if name not in PROMPTS:
            raise ConfigError(one_of("Meta-World task", part, [*GROUPS, *PROMPTS]))
        chosen[name] = None
    return tuple(chosen)
