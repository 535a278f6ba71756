"""Things that stand in a room: chair, table, lamp, bed, bookshelf, sofa."""

import numpy as np

from clipgs.shapes.design import NUMBERS, Design, Dice, Pieces, an, words
from clipgs.shapes.geometry import (
    Mesh,
    blob,
    box,
    curve,
    extrude,
    join,
    lathe,
    rings,
    rod,
    shell,
    smooth,
    sphere,
    tube,
)
from clipgs.shapes.paint import BRIGHT, COLORS, WOODS, Paint, checks, dots, plaid, plain, shaded, stripes, wood

FABRICS = (
    "red",
    "orange",
    "yellow",
    "green",
    "teal",
    "blue",
    "light blue",
    "purple",
    "pink",
    "beige",
    "gray",
)


def fabric(pattern: str, color: str, other: str = "white") -> Paint:
    """Cloth in one of the patterns named in captions."""
    one, two = COLORS[color], COLORS[other]
    match pattern:
        case "striped":
            return stripes(one, two)
        case "checked":
            return checks(one, two)
        case "dotted":
            return dots(one, two)
        case "plaid":
            return plaid(one, shaded(one, 0.45), two)
    return plain(color)


def leg(x: float, z: float, height: float, foot: float, top: float, splay: float = 0.0) -> Mesh:
    return rod((x * (1 + splay), 0, z * (1 + splay)), (x, height, z), foot, top, sides=20)


def chair(dice: Dice) -> Design:
    style = dice.one("dining", "dining", "arm", "stool", "office")
    kind = dice.one(*WOODS)
    color = dice.one(*FABRICS)
    pattern = dice.one("", "", "striped", "checked", "dotted")
    width, depth, seat = dice.number(0.42, 0.54), dice.number(0.42, 0.5), dice.number(0.43, 0.5)
    back = dice.number(0.42, 0.62)
    rungs = dice.count(2, 5)
    upright = dice.chance(0.5)
    high = "high-backed " if back > 0.56 else ""
    cushion = words(pattern, color, dice.one("cushion", "seat", "seat cushion"))
    rails = f"{NUMBERS[rungs]} {'upright slats' if upright else 'rungs'} in the back"
    match style:
        case "dining":
            caption = dice.one(
                f"{an(high + kind)} chair with {an(cushion)}",
                f"a {high}wooden chair with {an(cushion)} and {rails}",
                f"{an(kind)} dining chair with {rails} and {an(cushion)}",
            )
        case "arm":
            caption = dice.one(
                f"{an(high + kind)} chair with armrests and {an(cushion)}",
                f"a wooden armchair with {an(cushion)} and {rails}",
            )
        case "stool":
            caption = dice.one(
                f"{an(color)} plastic chair on four {kind} legs",
                f"a modern {color} shell chair with splayed wooden legs",
            )
        case _:
            caption = dice.one(
                f"{an(words(pattern, color))} office chair on five castors",
                f"{an('office chair')} with {an(words(pattern, color))} seat and a black base",
            )

    def pieces() -> Pieces:
        timber, cloth = wood(kind), fabric(pattern, color)
        x, z = width / 2 - 0.03, depth / 2 - 0.03
        if style == "stool":
            # One sheet bent from the seat into the back, dished across.
            line = curve([(0.0, 0.5), (0.01, 0.3), (-0.02, 0.08), (0.05, -0.02), (0.25, -0.06), (0.5, -0.13)], 20)
            sections = []
            for at, (rise, forward) in enumerate(line):
                half = width / 2 * (1.05 - 0.25 * abs(at / 20 - 0.4))
                across = np.linspace(-1, 1, 9)
                dish = 0.05 * across**2 * (1 if at < 10 else 0.4)
                wrap = 0.08 * across**2 * (at > 8)
                top = np.stack([across * half, rise + dish, forward + wrap], axis=1)
                normal = np.array([0, 0.022, 0.0]) if at < 10 else np.array([0, 0.0, 0.022])
                sections.append(np.concatenate([top, (top - normal)[::-1]]))
            yield rings(np.stack(sections)).move(y=seat, z=-0.18), plain(color, 0.5)
            for i in (-1, 1):
                for k in (-1, 1):
                    yield leg(i * x * 0.7, k * z * 0.7, seat, 0.012, 0.02, splay=0.35), timber
            return
        if style == "office":
            yield box(width, 0.09, depth, 0.04).move(y=seat).project(0.18), cloth
            support = box(width * 0.92, back, 0.08, 0.035).project(0.18)
            yield (
                support.warp(lambda p: p + [0, 0, 0.5] * p[:, :1] ** 2)
                .turn(x=-8)
                .move(y=seat + 0.12 + back / 2, z=-depth / 2 - 0.02),
                cloth,
            )
            black = plain("dark gray", 0.5)
            yield (
                tube(
                    curve(
                        [
                            (0, seat - 0.03, -0.1),
                            (0, seat - 0.02, -depth / 2 - 0.05),
                            (0, seat + 0.2, -depth / 2 - 0.08),
                        ],
                        12,
                    ),
                    0.022,
                ),
                black,
            )
            yield rod((0, 0.09, 0), (0, seat - 0.03, 0), 0.03), black
            for arm in range(5):
                angle = 2 * np.pi * (arm + 0.25) / 5
                end = (0.3 * np.sin(angle), 0.075, 0.3 * np.cos(angle))
                yield rod((0, 0.11, 0), end, 0.028, 0.018), black
                yield (
                    rod((end[0] - 0.02, 0.034, end[2]), (end[0] + 0.02, 0.034, end[2]), 0.034, sides=16),
                    black,
                )
            for side in (-1, 1):
                yield (
                    tube(
                        curve(
                            [
                                (side * width * 0.48, seat, -0.05),
                                (side * width * 0.58, seat + 0.04, 0),
                                (side * width * 0.58, seat + 0.2, 0),
                            ],
                            10,
                        ),
                        0.016,
                    ),
                    black,
                )
                yield box(0.06, 0.035, 0.26, 0.015).move(side * width * 0.58, seat + 0.21, 0.0), black
            return
        for i in (-1, 1):
            yield leg(i * x, z, seat, 0.018, 0.024, 0.04), timber
            post = curve([(i * x * 1.04, 0, -z - 0.03), (i * x, seat, -z), (i * x, seat + back, -z - 0.09)], 12)
            yield tube(post, np.linspace(0.02, 0.022, 13), sides=14), timber
            yield rod((i * x, seat * 0.45, -z), (i * x, seat * 0.45, z), 0.012), timber
        yield box(width, 0.035, depth, 0.012).move(y=seat).project(0.35, "z"), timber
        yield blob(width * 0.94, 0.085, depth * 0.92, 0.35, 28, 10).move(y=seat + 0.04).project(0.16), cloth

        def behind(y: float) -> float:  # where the posts are at height y
            return -z - 0.09 * ((y - seat) / back) ** 1.4

        def rail(y: float, tall: float) -> Mesh:
            bent = box(2 * x, tall, 0.024, 0.008).warp(lambda p: p - [0, 0, 0.02] * (1 - (p[:, :1] / x) ** 2))
            return bent.move(0, y, behind(y))

        yield rail(seat + back - 0.04, 0.09).project(0.3, "x"), timber
        if upright:
            yield rail(seat + 0.12, 0.05).project(0.3, "x"), timber
            for at in np.linspace(-x, x, rungs + 2)[1:-1]:
                low, high_end = seat + 0.12, seat + back - 0.06
                yield (
                    rod((at, low, behind(low) - 0.01), (at, high_end, behind(high_end) - 0.01), 0.011),
                    timber,
                )
        else:
            for y in np.linspace(seat + 0.12, seat + back - 0.04, rungs)[:-1]:
                yield rail(y, 0.05).project(0.3, "x"), timber
        if style == "arm":
            for i in (-1, 1):
                y = seat + 0.22
                rest = [(i * x, y, behind(y)), (i * (x + 0.03), y + 0.01, 0), (i * (x + 0.03), y - 0.01, z)]
                yield tube(curve(rest, 10), 0.022).project(0.3, "z"), timber
                yield rod((i * x, seat, z - 0.03), (i * (x + 0.03), y, z - 0.03), 0.018), timber

    return Design(caption, pieces)


def table(dice: Dice) -> Design:
    kind = dice.one(*WOODS)
    top = dice.one("round", "rectangular", "square", "round")
    legs = dice.one(3, 4, 1) if top == "round" else 4
    size = dice.one("small", "", "long") if top == "rectangular" else dice.one("small", "", "large")
    painted = dice.one(*BRIGHT, "white", "black") if dice.chance(0.45) else ""
    spread = {"small": 0.38, "": 0.5, "large": 0.62, "long": 0.6}[size]
    height = dice.number(0.5, 0.78)
    height_word = "low" if height < 0.56 else ""
    runner = dice.one(*FABRICS) if top != "round" and dice.chance(0.5) else ""
    ratio = dice.number(1.5, 1.9) + (0.4 if size == "long" else 0)
    under = f"{painted} legs" if painted and legs > 1 else "legs"
    support = "one turned leg in the middle" if legs == 1 else f"{NUMBERS[legs]} {under}"
    if legs == 1 and painted:
        support = f"{an(painted)} pedestal"
    cloth = f" and a striped {runner} table runner" if runner else ""
    caption = dice.one(
        f"{an(words(height_word, size, top, kind))} table with {support}{cloth}",
        f"{an(words(size, top, 'wooden table'))} with {support}{cloth}",
        f"{an(words(height_word, kind, 'table'))} with {an(top)} top and {support}"
        if not runner
        else f"{an(words(size, kind, 'table'))} with {support}{cloth}",
    )

    def pieces() -> Pieces:
        timber = wood(kind)
        stand = plain(painted, 0.6) if painted else timber
        half_x = spread * (ratio / 1.3 if top == "rectangular" else 1)
        half_z = spread * (1 / 1.15 if top == "rectangular" else 1)
        if top == "round":
            rim = [
                (0, height - 0.045),
                (spread * 0.96, height - 0.045),
                (spread, height - 0.03),
                (spread, height - 0.012),
                (spread * 0.985, height),
                (0, height),
            ]
            yield lathe(rim, 48).project(0.6, "x"), timber
        else:
            yield box(2 * half_x, 0.045, 2 * half_z, 0.012).move(y=height - 0.022).project(0.6, "x"), timber
            for k in (-1, 1):
                yield (
                    box(2 * half_x - 0.16, 0.08, 0.025).move(0, height - 0.085, k * (half_z - 0.08)).project(0.5, "x"),
                    stand,
                )
                yield (
                    box(0.025, 0.08, 2 * half_z - 0.16).move(k * (half_x - 0.08), height - 0.085).project(0.5, "z"),
                    stand,
                )
        if legs == 1:
            foot = smooth(
                [
                    (0.06, height - 0.05),
                    (0.035, height * 0.75),
                    (0.075, height * 0.5),
                    (0.04, height * 0.3),
                    (0.06, 0.12),
                    (0.06, 0.08),
                ],
                30,
            )
            yield lathe(foot, 24).project(0.4), stand
            for at in range(4):
                angle = np.pi * (at + 0.5) / 2
                x, z = np.cos(angle), np.sin(angle)
                reach = spread * 0.65
                yield (
                    tube(
                        curve(
                            [
                                (0, 0.16, 0),
                                (x * reach * 0.5, 0.11, z * reach * 0.5),
                                (x * reach, 0.025, z * reach),
                            ],
                            10,
                        ),
                        np.linspace(0.04, 0.025, 11),
                    ),
                    stand,
                )
        else:
            spots = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
            if top == "round":
                spots = [
                    (np.sin(2 * np.pi * a / legs) / 1.35, np.cos(2 * np.pi * a / legs) / 1.35) for a in range(legs)
                ]
            for i, k in spots:
                inset = 0 if top == "round" else 0.08
                x, z = i * (half_x - inset), k * (half_z - inset)
                yield leg(x, z, height - 0.03, 0.02, 0.036, 0.12 if top == "round" else 0.0), stand
        if runner:
            yield (
                box(half_x * 0.7, 0.012, 2 * half_z + 0.02, 0.004).move(y=height + 0.004).project(0.12),
                fabric("striped", runner, "cream"),
            )
            for k in (-1, 1):
                yield (
                    box(half_x * 0.7, 0.16, 0.012, 0.004).move(0, height - 0.07, k * (half_z + 0.008)).project(0.12),
                    fabric("striped", runner, "cream"),
                )

    return Design(caption, pieces)


def lamp(dice: Dice) -> Design:
    style = dice.one("table", "table", "floor", "desk")
    color, shade_color = dice.two("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "cream")
    metal = dice.one("black", "gold", "silver")
    pattern = dice.one("striped", "dotted", "checked", "plain", "plain")
    height = dice.number(0.42, 0.62)
    tall = "tall" if height > 0.53 else dice.one("small", "")
    flare = dice.number(0.55, 0.85)
    body = dice.one("round", "slender", "stacked")
    shade = words("" if pattern == "plain" else pattern, shade_color, "shade")
    match style:
        case "table":
            form = {"round": "round ", "slender": "slender ", "stacked": ""}[body]
            of_balls = " made of stacked balls" if body == "stacked" else ""
            caption = dice.one(
                f"{an(words(tall, color))} lamp with {an(shade)}",
                f"{an(words(tall, 'table lamp'))} with {an(form + color)} base{of_balls} and {an(shade)}",
            )
        case "floor":
            caption = dice.one(
                f"a floor lamp with {an(shade)} on a {metal} stand",
                f"a tall {metal} standing lamp with {an(shade)}",
            )
        case _:
            caption = dice.one(
                f"{an(color)} desk lamp with a jointed arm",
                f"a bent {color} reading lamp on a round base",
            )

    def pieces() -> Pieces:
        steel = plain(metal, 0.5)
        if style == "desk":
            paint = plain(color, 0.5)
            yield lathe([(0, 0), (0.16, 0), (0.165, 0.012), (0.15, 0.03), (0, 0.036)], 32), paint
            elbow, wrist = (0, 0.36, -0.16), (0, 0.58, 0.1)
            for i in (-1, 1):
                yield rod((i * 0.014, 0.03, 0), (i * 0.014, *elbow[1:]), 0.009), steel
                yield rod((i * 0.014, *elbow[1:]), (i * 0.014, *wrist[1:]), 0.009), steel
            for joint in (elbow, wrist, (0, 0.045, 0)):
                yield rod((-0.03, *joint[1:]), (0.03, *joint[1:]), 0.022, sides=16), paint
            head = shell(smooth([(0.13, 0), (0.115, 0.06), (0.07, 0.12), (0.04, 0.16), (0.0, 0.17)], 14), 0.008, 32)
            yield head.turn(x=-38).move(0, 0.46, 0.2), paint
            yield sphere(0.05, 16).turn(x=-38).move(0, 0.5, 0.18), plain("cream")
            return
        top = 1.5 if style == "floor" else height
        wide = 0.27 if style == "floor" else 0.22
        tall_shade = 0.32 if style == "floor" else 0.22
        cover = {
            "striped": (stripes(COLORS[shade_color], COLORS["white"]), 12, 1),
            "dotted": (dots(COLORS[shade_color], COLORS["white"]), 8, 2),
            "checked": (checks(COLORS[shade_color], COLORS["white"]), 8, 2),
            "plain": (plain(shade_color), 1, 1),
        }[pattern]
        line = [
            (wide, top - 0.04),
            (wide * (1 + flare) / 2, top + tall_shade / 2 - 0.04),
            (wide * flare, top + tall_shade - 0.04),
        ]
        yield shell(line, 0.006, 48).tile(cover[1], cover[2]), cover[0]
        for y, r in ((top - 0.04, wide), (top + tall_shade - 0.04, wide * flare)):
            ring = [(r * np.cos(a), y, r * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 49)]
            yield tube(ring, 0.007, 8), Paint(color=shaded(COLORS[shade_color], 0.6))
        yield sphere(0.055, 16).move(y=top + 0.08), plain("cream")
        if style == "floor":
            yield lathe([(0, 0), (0.2, 0), (0.2, 0.02), (0.05, 0.05), (0, 0.05)], 32), steel
            yield rod((0, 0.03, 0), (0, top + 0.05, 0), 0.017), steel
            return
        glaze = plain(color, 0.4)
        if body == "round":
            base = smooth(
                [
                    (0.075, 0.0),
                    (0.085, 0.02),
                    (0.15, 0.13),
                    (0.13, 0.24),
                    (0.05, top * 0.62),
                    (0.03, top * 0.68),
                ],
                30,
            )
            yield lathe(base, 32), glaze
        elif body == "slender":
            base = smooth(
                [
                    (0.12, 0.0),
                    (0.12, 0.02),
                    (0.045, 0.06),
                    (0.06, top * 0.3),
                    (0.085, top * 0.5),
                    (0.03, top * 0.72),
                ],
                30,
            )
            yield lathe(base, 32), glaze
        else:
            yield lathe([(0, 0), (0.12, 0), (0.12, 0.025), (0, 0.03)], 32), steel
            step = top * 0.7 / 3
            for ball in range(3):
                yield (
                    blob(0.2 - 0.03 * ball, step * 1.12, 0.2 - 0.03 * ball).move(y=0.03 + step * (ball + 0.5)),
                    glaze,
                )
        yield rod((0, top * 0.6, 0), (0, top + 0.04, 0), 0.014), steel

    return Design(caption, pieces)


def bed(dice: Dice) -> Design:
    kind = dice.one(*WOODS)
    width = dice.one(0.95, 1.5, 1.7)
    size = {0.95: "single", 1.5: "double", 1.7: "double"}[width]
    cover, pillow = dice.two(*FABRICS[:9], "navy blue", "white")
    pattern = dice.one("plaid", "striped", "checked", "dotted", "")
    head = dice.one("panel", "slats", "arched")
    blanket = words(pattern, cover, "blanket")
    pillows = f"{an(pillow)} pillow" if size == "single" else f"two {pillow} pillows"
    board = {"panel": "", "slats": "a slatted headboard", "arched": "an arched headboard"}[head]
    caption = dice.one(
        f"{an(size)} bed with {an(blanket)} and {pillows}",
        f"{an(kind)} bed with {an(blanket)}{' and ' + board if board else ''}",
        f"a wooden {size} bed with {pillows}{', ' + board if board else ''} and {an(blanket)}",
    )

    def pieces() -> Pieces:
        timber, cloth = wood(kind), fabric(pattern, cover, "light blue" if cover == "white" else "white")
        length, deck = 2.0, 0.32
        x = width / 2
        for k in (-1, 1):
            yield box(0.05, 0.2, length, 0.015).move(k * x, deck - 0.02).project(0.6, "z"), timber
        for z, tall in ((length / 2, 0.5), (-length / 2, 0.9)):
            for i in (-1, 1):
                yield box(0.08, tall, 0.08, 0.02).move(i * x, tall / 2, z).project(0.5), timber
                yield sphere(0.055, 14).move(i * x, tall + 0.03, z), timber
            if head == "slats":
                for y in (tall - 0.08, 0.36):
                    yield box(width, 0.07, 0.04, 0.01).move(0, y, z).project(0.5, "x"), timber
                for at in np.linspace(-x, x, round(width / 0.14) + 2)[1:-1]:
                    yield box(0.045, tall - 0.4, 0.025).move(at, (tall + 0.28) / 2, z).project(0.5), timber
            else:
                panel = box(width, tall - 0.3, 0.05, 0.015)
                if head == "arched":
                    outline = [(-x, 0.25), (x, 0.25)] + [
                        (x * np.cos(a), tall - 0.12 + 0.2 * np.sin(a)) for a in np.linspace(0, np.pi, 17)
                    ]
                    yield extrude(outline, 0.05, 0.012).move(z=z).project(0.6, "x"), timber
                else:
                    yield panel.move(0, (tall + 0.2) / 2, z).project(0.6, "x"), timber
        yield blob(width * 0.98, 0.3, length * 0.97, 0.22, 40, 14).move(y=deck + 0.12), plain("white")
        sheet = blob(width * 1.04, 0.3, length * 0.66, 0.2, 40, 14).move(0, deck + 0.145, length * 0.165)
        yield sheet.project(0.36), cloth
        turned_down = blob(width * 1.045, 0.31, 0.22, 0.25, 40, 12).move(0, deck + 0.15, -length * 0.165 - 0.02)
        yield turned_down, plain("cream" if cover != "white" else "light blue")
        for at in (-0.25, 0.25) if size == "double" else (0.0,):
            cushion = blob(min(width * 0.44, 0.7), 0.17, 0.42, 0.5, 24, 12).turn(x=18)
            yield cushion.move(at * width, deck + 0.34, -length / 2 + 0.32), plain(pillow)

    return Design(caption, pieces)


def bookshelf(dice: Dice) -> Design:
    kind = dice.one(*WOODS)
    painted = dice.one("white", "blue", "green", "black", "red") if dice.chance(0.4) else ""
    shelves = dice.count(2, 5)
    tier = dice.number(0.3, 0.36)
    width = dice.number(0.7, 1.2)
    form = "narrow" if width < 0.8 else "wide" if width > 1.1 else ""
    plant = dice.chance(0.4)
    full = dice.one("filled with books", "full of colorful books", "with rows of books")
    extra = " and a small plant on top" if plant else ""
    caption = dice.one(
        f"{an(words(form, painted or kind, 'bookshelf'))} with {NUMBERS[shelves]} shelves {full}{extra}",
        f"{an(words(form, painted or 'wooden', 'bookcase'))} {full}{extra}",
        f"a bookshelf of {NUMBERS[shelves]} shelves in {painted or kind}, {full}{extra}",
    )
    gaps = [[dice.number(0, 1) for _ in range(90)] for _ in range(shelves)]

    def banded(book: Mesh, tone: np.ndarray) -> Mesh:  # [3]
        dark = np.isin(np.arange(len(book.points)) // 4, (2, 3, 6, 7))
        return book.tint(lambda _: tone * np.where(dark, 0.5, 1)[:, None])

    def pieces() -> Pieces:
        timber = plain(painted, 0.6) if painted else wood(kind)
        depth, board = 0.3, 0.03
        height = shelves * (tier + board) + board + 0.06
        for i in (-1, 1):
            yield box(board, height, depth, 0.006).move(i * width / 2, height / 2).project(0.7), timber
        yield (
            box(width, height - 0.06, 0.012).move(0, height / 2 + 0.03, -depth / 2 + 0.01).project(0.7),
            timber,
        )
        for level in range(shelves + 1):
            y = 0.06 + board / 2 + level * (tier + board)
            yield box(width - board, board, depth - 0.01, 0.004).move(y=y).project(0.7, "x"), timber
        yield box(width - board, 0.06, 0.02).move(0, 0.03, depth / 2 - 0.04).project(0.7, "x"), timber
        tones = [COLORS[name] for name in (*BRIGHT, "dark red", "navy blue", "cream", "dark green", "brown")]
        edges = np.array([0, 0.14, 0.142, 0.22, 0.222, 0.72, 0.722, 0.8, 0.802, 1])  # two bands on each spine
        books = []
        for level, chosen in enumerate(gaps):
            floor = 0.06 + board + level * (tier + board)
            x, at = -width / 2 + 0.03, 0
            stop = width / 2 - 0.03 - (0.16 if chosen[-1] < 0.4 else 0.0)
            while x < stop - 0.06 and at < 80:
                thick, tall = 0.028 + 0.035 * chosen[at], tier * (0.62 + 0.3 * chosen[at + 1])
                front = depth / 2 - 0.03 - 0.03 * chosen[at + 2]
                corner = np.array([(0, front - 0.2), (thick * 0.94, front - 0.2), (thick * 0.94, front), (0, front)])
                heights = np.broadcast_to(edges[:, None] * tall, (len(edges), 4))
                across, deep = np.broadcast_to(corner.T[:, None], (2, len(edges), 4))
                book = rings(np.stack([x + across, floor + heights, deep], axis=-1))
                tone = np.array(tones[int(chosen[at + 3] * len(tones))]) / 255
                books.append(banded(book, tone))
                x, at = x + thick, at + 4
            if stop < width / 2 - 0.1:  # a vase where the row ends early
                vase = smooth([(0.03, 0), (0.055, tier * 0.25), (0.025, tier * 0.5), (0.035, tier * 0.6)], 16)
                yield lathe(vase, 20).move(width / 2 - 0.11, floor, 0.02), plain("teal", 0.5)
        yield join(books), Paint()
        if plant:
            pot = lathe([(0, 0), (0.06, 0), (0.08, 0.12), (0.07, 0.12), (0, 0.11)], 20)
            yield pot.move(-width / 4, height), plain("orange")
            for leaf in range(11):
                angle = 2.4 * leaf
                up, out = 0.14 + 0.012 * leaf, 0.13 - 0.009 * leaf
                tip = np.array([np.cos(angle) * out, up + 0.1, np.sin(angle) * out])
                line = curve([(0, 0.1, 0), tip * [0.5, 0.95, 0.5], tip], 6)
                blade = tube(line, [0.006, 0.014, 0.02, 0.022, 0.018, 0.01, 0.002], 8)
                yield blade.move(-width / 4, height), plain("green")

    return Design(caption, pieces)


def sofa(dice: Dice) -> Design:
    seats = dice.count(2, 3)
    color, accent = dice.two(*FABRICS, "navy blue", "dark green")
    pattern = dice.one("", "", "striped", "plaid", "checked")
    arms = dice.one("rounded", "square")
    kind = dice.one("oak", "walnut")
    pillows = dice.count(0, 2)
    cushion = {0: "", 1: f"{an(accent)} throw pillow", 2: f"two {accent} throw pillows"}[pillows]
    with_pillow = f" with {cushion}" if cushion else " on wooden legs"
    caption = dice.one(
        f"{an(words(pattern, color, 'sofa'))}{with_pillow}",
        f"{an(words(pattern, color, 'couch'))} with {NUMBERS[seats]} seats and {arms} arms",
        f"a {NUMBERS[seats]}-seat {words(pattern, color)} sofa{with_pillow}",
    )

    def pieces() -> Pieces:
        cloth, timber = fabric(pattern, color, "cream"), wood(kind)
        body = Paint(color=shaded(COLORS[color], 0.85))
        seat = 0.62
        width, depth = seats * seat, 0.85
        for i in (-1, 1):
            for k in (-1, 1):
                yield (
                    rod(
                        (i * (width / 2 + 0.06), 0, k * 0.32),
                        (i * (width / 2 + 0.03), 0.15, k * 0.32),
                        0.022,
                        0.035,
                    ),
                    timber,
                )
            if arms == "rounded":
                yield box(0.16, 0.36, depth, 0.04).move(i * (width / 2 + 0.09), 0.3), body
                yield (
                    rod(
                        (i * (width / 2 + 0.1), 0.5, -depth / 2),
                        (i * (width / 2 + 0.1), 0.5, depth / 2),
                        0.11,
                        sides=24,
                    ),
                    body,
                )
            else:
                yield box(0.18, 0.46, depth, 0.045).move(i * (width / 2 + 0.09), 0.36), body
        yield box(width + 0.02, 0.18, depth - 0.04, 0.03).move(y=0.22), body
        yield box(width + 0.02, 0.56, 0.2, 0.06).turn(x=-6).move(0, 0.5, -depth / 2 + 0.08), body
        for at in range(seats):
            x = (at - (seats - 1) / 2) * seat
            yield blob(seat * 0.99, 0.2, depth - 0.2, 0.3, 32, 12).move(x, 0.38, 0.06).project(0.2), cloth
            back = blob(seat * 0.98, 0.46, 0.24, 0.36, 32, 14).turn(x=-10).project(0.2)
            yield back.move(x, 0.66, -depth / 2 + 0.25), cloth
        for at in range(pillows):
            side = (-1, 1)[at]
            cushion_mesh = blob(0.38, 0.38, 0.14, 0.55, 24, 12).turn(x=-22, z=side * 8)
            yield cushion_mesh.move(side * (width / 2 - 0.24), 0.64, -0.02), plain(accent)

    return Design(caption, pieces)
