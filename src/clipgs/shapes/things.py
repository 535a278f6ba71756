"""Things a hand holds: mug, bottle, teapot, umbrella, guitar, cake, robot."""

import numpy as np

from clipgs.shapes.design import NUMBERS, Design, Dice, Pieces, an, words
from clipgs.shapes.geometry import blob, box, circle, curve, extrude, lathe, rings, rod, shell, smooth, sphere, tube
from clipgs.shapes.paint import BRIGHT, COLORS, WOODS, Paint, checks, dots, label, plain, sides, stripes, wood


def mug(dice: Dice) -> Design:
    color, other = dice.two(*BRIGHT, "white", "navy blue", "cream", "gray")
    pattern = dice.one("striped", "banded", "dotted", "checked", "plain")
    height, radius = dice.number(0.085, 0.125), dice.number(0.038, 0.05)
    form = dice.one("straight", "round", "flared")
    drink = dice.one("coffee", "tea", "", "")
    tall = "tall" if height > 0.112 else "small" if height < 0.094 else ""
    match pattern:
        case "striped":
            look = f"with {other} stripes"
        case "banded":
            look = f"with two {other} bands"
        case "dotted":
            look = f"with {other} dots"
        case "checked":
            look = f"with {an(other)} checked pattern"
        case _:
            look = f"with {an(other)} inside" if not drink else f"with {an(other)} handle"
    mug_or_cup = words(tall, "round" if form == "round" else "", color, dice.one("mug", "cup"))
    caption = dice.one(
        f"{an(words(tall, color))} mug {look}{' and ' + drink + ' in it' if drink else ''}",
        f"{an(mug_or_cup)} {look}"
        if not drink
        else f"{an(words(tall, color))} {'coffee mug' if drink == 'coffee' else 'tea mug'} {look}",
    )

    def pieces() -> Pieces:
        one, two = COLORS[color], COLORS[other]
        wall, rim = 0.004, radius
        if form == "straight":
            side = [(radius, 0.006), (radius, height)]
        elif form == "flared":
            side = smooth([(radius * 0.72, 0.006), (radius * 0.8, height * 0.45), (radius * 1.08, height)], 14)
            rim = radius * 1.08
        else:
            side = smooth(
                [
                    (radius * 0.72, 0.006),
                    (radius * 1.08, height * 0.35),
                    (radius * 1.04, height * 0.7),
                    (radius * 0.98, height),
                ],
                18,
            )
            rim = radius * 0.98
        coat = {
            "striped": (stripes(one, two), 10, 1),
            "banded": (stripes(one, two, upright=False), 1, 2),
            "dotted": (dots(one, two), 7, 2),
            "checked": (checks(one, two), 8, 3),
            "plain": (Paint(color=one, roughness=0.4), 1, 1),
        }[pattern]
        # The coat alone carries the pattern, so the inside has a lining of its own.
        inner = [(r, max(y, 0.008)) for r, y in side]
        outside = [(side[0][0] - 0.004, 0), *side, (rim - wall / 2, height + 0.001)]
        cup = lathe([*outside, *[(r - wall / 2, y) for r, y in reversed(inner)], (0, 0.008)], 48)
        yield cup.tile(coat[1], coat[2] * 2.1), coat[0]
        lining = [(0, 0.009), *[(r - wall / 2 - 0.0002, y + 0.001) for r, y in inner]]
        lining += [*[(r - wall, y + 0.002) for r, y in reversed(inner)], (0, 0.0105)]
        yield lathe(lining, 48), plain(other if pattern == "plain" and not drink else "white", 0.4)
        yield (
            tube(
                [(rim * np.cos(a) * 0.97, height, rim * np.sin(a) * 0.97) for a in np.linspace(0, 2 * np.pi, 49)],
                0.003,
                8,
            ),
            Paint(color=one, roughness=0.4),
        )
        if drink:
            level = height * 0.88
            edge = float(np.interp(level, [y for _, y in side], [r for r, _ in side])) - wall * 0.7
            yield (
                lathe([(0, level - 0.004), (edge, level - 0.004), (edge, level), (0, level)], 40),
                Paint(color=(72, 42, 24) if drink == "coffee" else (176, 92, 30), roughness=0.3),
            )
        reach = np.interp([height * 0.78, height * 0.22], [y for _, y in side], [r for r, _ in side]) - 0.002
        out = radius + 0.032
        ear = curve(
            [
                (reach[0], height * 0.8, 0),
                (out * 0.93, height * 0.82, 0),
                (out, height * 0.55, 0),
                (out * 0.88, height * 0.26, 0),
                (reach[1], height * 0.2, 0),
            ],
            24,
        )
        handle = tube(ear, 0.0058, 12).turn(y=-25)
        yield handle, Paint(color=two if pattern == "plain" and drink else one, roughness=0.4)

    return Design(caption, pieces)


def bottle(dice: Dice) -> Design:
    style = dice.one("wine", "soda", "water", "sauce", "milk")
    glass = {
        "wine": dice.one("dark green", "dark red", "brown"),
        "soda": dice.one("orange", "red", "green", "purple", "brown"),
        "water": dice.one("light blue", "turquoise", "blue"),
        "sauce": dice.one("red", "yellow", "brown", "dark green"),
        "milk": dice.one("white", "pink", "cream"),
    }[style]
    papers = ("white", "cream", "yellow", "red", "blue", "teal", "black")
    paper, ink = dice.two(*(name for name in papers if name != glass))
    cap = dice.one("red", "gold", "black", "white", "blue") if style != "wine" else dice.one("gold", "black", "red")
    slim = dice.number(0.85, 1.12)
    plump = "slim" if slim < 0.91 else "wide" if slim > 1.06 else ""
    caption = dice.one(
        f"{an(words(plump, glass, style if style in ('wine', 'soda') else ''))} bottle with {an(paper)} label"
        f" and {an(cap)} cap",
        f"{an(words(plump, style))} bottle in {glass} with {an(paper)} label",
        f"{an(glass)} {style} bottle with {an(cap)} cap and {an(paper)} label with {ink} print",
    )

    def pieces() -> Pieces:
        r = {"wine": 0.038, "soda": 0.033, "water": 0.036, "sauce": 0.034, "milk": 0.046}[style] * slim
        shoulder, neck, top, throat = {
            "wine": (0.19, 0.235, 0.3, 0.0145),
            "soda": (0.13, 0.185, 0.215, 0.013),
            "water": (0.16, 0.19, 0.205, 0.014),
            "sauce": (0.12, 0.165, 0.19, 0.012),
            "milk": (0.13, 0.175, 0.205, 0.02),
        }[style]
        line = [(0, 0.004), (r * 0.85, 0), (r * 0.97, 0.004), (r, 0.012)]
        if style == "soda":
            line += smooth([(r, 0.02), (r * 1.0, 0.05), (r * 0.9, 0.085), (r, shoulder)], 16)[1:]
        elif style == "water":
            for k in range(4):
                y = 0.02 + k * 0.014
                line += [(r, y), (r * 0.955, y + 0.005), (r, y + 0.01)]
        line += smooth(
            [
                (r, shoulder - 0.003),
                (r * 0.93, shoulder + (neck - shoulder) * 0.25),
                (throat * 1.25, neck - (neck - shoulder) * 0.2),
                (throat, neck),
            ],
            18,
        )
        line += [(throat, top - 0.004), (throat * 1.18, top - 0.004), (throat * 1.18, top), (0, top)]
        yield lathe(line, 40), plain(glass, 0.35)
        high = top + 0.012 if style != "wine" else top + 0.002
        low = top - 0.01 if style != "wine" else top - 0.05
        wide = throat * (1.35 if style != "wine" else 1.2)
        yield (
            lathe([(throat, low), (wide, low), (wide, high - 0.002), (wide * 0.93, high), (0, high)], 32),
            plain(cap, 0.5),
        )
        below, above = (0.035, shoulder - 0.02) if style != "water" else (0.08, shoulder - 0.008)
        ys = np.linspace(below, above, 8)
        inner = np.array([[np.interp(y, [q for _, q in line[3:]], [p for p, _ in line[3:]]), y] for y in ys])
        band = shell([(p + 0.0012, y) for p, y in inner], 0.0014, 40)
        # Wider than it is tall: the print repeats twice round, so it is seen from any side.
        yield (
            band.tile(2, 1),
            label(COLORS[paper], COLORS[ink], COLORS["black" if ink != "black" else "red"]),
        )

    return Design(caption, pieces)


def teapot(dice: Dice) -> Design:
    color, other = dice.two(*BRIGHT, "white", "cream", "brown", "black")
    pattern = dice.one("plain", "dotted", "striped", "banded")
    squat = dice.number(0.75, 1.1)
    form = "squat" if squat < 0.84 else "tall" if squat > 1.02 else "round"
    look = {
        "plain": f"{an(other)} lid",
        "dotted": f"{other} dots",
        "striped": f"{other} stripes",
        "banded": f"{an(other)} band",
    }[pattern]
    caption = dice.one(
        f"{an(words(form, color))} teapot with {look}",
        f"{an(color)} teapot with {look} and a curved spout",
        f"a {form} ceramic teapot in {color} with {look}",
    )

    def pieces() -> Pieces:
        one, two = COLORS[color], COLORS[other]
        glaze = Paint(color=one, roughness=0.4)
        coat = {
            "plain": (glaze, 1, 1),
            "dotted": (dots(one, two), 9, 4),
            "striped": (stripes(one, two), 14, 1),
            "banded": (glaze, 1, 1),
        }[pattern]
        profile = smooth([(0.045, 0), (0.085, 0.03), (0.1, 0.075), (0.085, 0.12), (0.045, 0.145)], 30)
        body = lathe([(0, 0), *profile], 48).scale(y=squat)
        yield body.tile(coat[1], coat[2]), coat[0]
        yield lathe([(0.03, -0.006), (0.05, -0.006), (0.055, 0.006), (0.03, 0.012)], 40), glaze
        cap = Paint(color=two if pattern == "plain" else one, roughness=0.4)
        lid = [(0, 0.14), (0.05, 0.142), (0.05, 0.147), (0.04, 0.158), (0.02, 0.166), (0.008, 0.168)]
        yield lathe([*lid, (0, 0.169)], 40).scale(y=squat), cap
        yield sphere(0.014, 18).move(y=0.178 * squat), Paint(color=two, roughness=0.4)
        if pattern == "banded":
            yield (
                shell([(0.1012, 0.062), (0.1024, 0.075), (0.1005, 0.088)], 0.002, 48).scale(y=squat),
                Paint(color=two, roughness=0.4),
            )
        spout = curve([(0.08, 0.05, 0), (0.125, 0.065, 0), (0.142, 0.11, 0), (0.168, 0.145, 0)], 20)
        yield tube(spout * [1, squat, 1], np.linspace(0.026, 0.0115, 21), 20), glaze
        yield (
            tube(
                [
                    spout[-1] * [1, squat, 1] - [0.001, 0.002, 0],
                    spout[-1] * [1, squat, 1] + [0.0006, 0.001, 0],
                ],
                0.0085,
                16,
            ),
            Paint(color=(40, 30, 26)),
        )
        ear = curve(
            [
                (-0.075, 0.125, 0),
                (-0.125, 0.135, 0),
                (-0.155, 0.09, 0),
                (-0.125, 0.045, 0),
                (-0.085, 0.045, 0),
            ],
            28,
        )
        yield tube(ear * [1, squat, 1], 0.0085, 14), glaze

    return Design(caption, pieces)


def umbrella(dice: Dice) -> Design:
    color, other = dice.two(*BRIGHT, "navy blue", "white", "black")
    gores = dice.one(8, 8, 10, 12)
    pattern = dice.one("panels", "panels", "plain", "dotted")
    handle = dice.one("oak", "walnut", "cherry")
    hook = dice.chance(0.7)
    grip = "curved wooden handle" if hook else "straight wooden handle"
    look = {
        "panels": f"{an(color)} and {other} umbrella",
        "plain": f"{an(color)} umbrella",
        "dotted": f"{an(color)} umbrella with {other} dots",
    }[pattern]
    end = {
        "panels": f"with {NUMBERS[gores]} alternating panels",
        "plain": f"with a {grip}",
        "dotted": f"and a {grip}",
    }[pattern]
    caption = dice.one(f"an open {look.split(' ', 1)[1]} {end}", f"{look} {end}")
    if pattern == "panels" and dice.chance(0.5):
        caption = f"{look} with a {grip}"

    def pieces() -> Pieces:
        one, two = COLORS[color], COLORS[other]
        coat = {
            "panels": (sides(gores, one, two), 1, 1),
            "plain": (plain(color), 1, 1),
            "dotted": (dots(one, two), gores, 3),
        }[pattern]
        radius, rise, steps = 0.5, 0.24, 10
        per = 6
        around = circle(gores * per)
        phase = (np.arange(gores * per) % per) / per
        sag = 4 * phase * (1 - phase)  # 0 on a rib, 1 in the middle of a panel
        layers = []
        for t in np.linspace(1, 0.02, steps):
            height = rise * (1 - t**2.1)
            reach = radius * t * (1 - 0.075 * sag * t**2)
            layers.append(
                np.stack(
                    [
                        -around[:, 0] * reach,
                        height - 0.02 * sag * t * (1 - t) * 2 + 0.012 * sag * t**4,
                        around[:, 1] * reach,
                    ],
                    axis=1,
                )
            )
        outer = np.stack(layers)
        canopy = np.concatenate([outer, (outer * [0.995, 1, 0.995] - [0, 0.006, 0])[::-1]])
        yield rings(canopy, loop=True).tile(coat[1], coat[2] * 2).move(y=0.62), coat[0]
        steel = plain("gray", 0.5)
        yield rod((0, 0.0, 0), (0, 0.87, 0), 0.009), steel
        yield rod((0, 0.86, 0), (0, 0.94, 0), 0.012, 0.004), Paint(color=(60, 60, 64))
        for rib in range(gores):
            angle = 2 * np.pi * rib / gores
            tip = np.array([-np.cos(angle), 0, np.sin(angle)])
            yield (
                rod(tuple(tip * 0.012 + [0, 0.62, 0]), tuple(tip * 0.25 + [0, 0.79, 0]), 0.004, sides=6),
                steel,
            )
            yield sphere(0.009, 8).move(*(tip * radius * 0.995 + [0, 0.617, 0])), steel
        grain = wood(handle)
        if hook:
            bend = curve(
                [
                    (0, 0.14, 0),
                    (0, 0.02, 0),
                    (0.012, -0.055, 0),
                    (0.06, -0.09, 0),
                    (0.108, -0.06, 0),
                    (0.12, -0.01, 0),
                ],
                28,
            )
            yield tube(bend, 0.0185, 14), grain
        else:
            yield lathe(smooth([(0.014, 0.14), (0.022, 0.08), (0.017, 0.02), (0.024, -0.06)], 16), 20), grain

    return Design(caption, pieces)


def guitar(dice: Dice) -> Design:
    electric = dice.chance(0.45)
    kind = dice.one(*WOODS)
    color = dice.one("red", "blue", "light blue", "yellow", "black", "teal", "orange", "green", "white")
    guard = dice.one("white", "black")
    stain = dice.one("", "orange", "yellow", "dark red") if not electric else ""
    hips = dice.number(0.92, 1.08)
    plump = "narrow" if hips < 0.955 else "wide" if hips > 1.045 else ""
    rosette = dice.one("red", "teal", "blue", "gold", "white", "black", "orange")
    pickups = dice.count(2, 3)
    wooden = words(plump, stain or kind)
    if electric:
        caption = dice.one(
            f"{an(color)} electric guitar with {an(guard)} pickguard",
            f"an electric guitar in {color} with {an(guard)} pickguard and {an(kind)} neck",
            f"{an(color)} electric guitar with {NUMBERS[pickups]} pickups and {an(kind)} neck",
        )
    else:
        caption = dice.one(
            f"an acoustic guitar with {an(words(stain, 'stained' if stain else '', kind))} body",
            f"{an(wooden)} acoustic guitar with {an(rosette)} ring round the sound hole",
            f"an acoustic guitar with {an(wooden)} body, {an(guard)} rim and {an(rosette)} rosette",
        )

    def pieces() -> Pieces:
        neck_wood = wood(kind if electric else "walnut" if kind != "walnut" else "cherry")
        depth = 0.045 if electric else 0.1
        black, steel = Paint(color=(34, 32, 34)), plain("silver", 0.4)
        if electric:
            half = [
                (0.0, 0.0),
                (0.1, 0.005),
                (0.165, 0.06),
                (0.17, 0.14),
                (0.125, 0.23),
                (0.125, 0.3),
                (0.16, 0.37),
                (0.15, 0.43),
                (0.105, 0.4),
                (0.06, 0.36),
            ]
            other = [
                (0.06, 0.36),
                (0.1, 0.39),
                (0.14, 0.375),
                (0.13, 0.32),
                (0.115, 0.27),
                (0.13, 0.2),
                (0.175, 0.12),
                (0.16, 0.04),
                (0.09, 0.0),
                (0.0, 0.0),
            ]
            left = curve(half, 40) * [-1, 1]
            right = curve(other, 40)
            outline = np.concatenate([left[:-1], right[:-1]])
            yield extrude(outline * [hips, 1], depth, 0.012), plain(color, 0.4)
            plate = np.concatenate(
                [
                    curve([(-0.05, 0.33), (-0.1, 0.28), (-0.085, 0.2), (-0.04, 0.1)], 12),
                    curve([(0.05, 0.06), (0.12, 0.09), (0.115, 0.16), (0.085, 0.24), (0.05, 0.33)], 14),
                ]
            )
            yield extrude(plate, 0.006, 0.002).move(z=depth / 2 + 0.002), plain(guard, 0.5)
            for y in (0.3, 0.225, 0.15) if pickups == 3 else (0.3, 0.16):
                yield box(0.075, 0.022, 0.014, 0.006).move(0, y, depth / 2 + 0.008), black
            for x, y in ((0.075, 0.11), (0.1, 0.14), (0.105, 0.175)):
                yield rod((x, y, depth / 2), (x, y, depth / 2 + 0.022), 0.012, sides=16), steel
            bridge, body_top, neck_end = 0.09, 0.36, 0.9
        else:
            bout = curve(
                [
                    (0.0, 0.0),
                    (0.12, 0.012),
                    (0.185, 0.1),
                    (0.165, 0.2),
                    (0.125, 0.27),
                    (0.135, 0.36),
                    (0.12, 0.44),
                    (0.05, 0.475),
                    (0.0, 0.475),
                ],
                40,
            ) * [hips, 1]
            outline = np.concatenate([bout[:-1], (bout * [-1, 1])[:0:-1]])
            top = Paint(color=COLORS[stain]) if stain else wood(kind)
            side = wood("walnut" if kind != "walnut" else "cherry")
            yield extrude(outline, depth, 0.01).project(0.3), side
            yield extrude(outline * 0.985 + [0, 0.0035], 0.008, 0.002).move(z=depth / 2).project(0.3), top
            rim = np.column_stack([outline, np.full(len(outline), depth / 2)])
            yield tube(np.concatenate([rim, rim[:1]]), 0.0055, 8), plain(guard, 0.5)
            hole = [(0, 0), (0.05, 0), (0.05, 0.004), (0, 0.004)]
            yield lathe(hole, 32).turn(x=90).move(0, 0.31, depth / 2 + 0.002), Paint(color=(40, 26, 18))
            ring = [
                (0.055 * np.cos(a), 0.31 + 0.055 * np.sin(a), depth / 2 + 0.005) for a in np.linspace(0, 2 * np.pi, 41)
            ]
            yield tube(ring, 0.005, 8), plain(rosette)
            yield box(0.14, 0.025, 0.016, 0.006).move(0, 0.13, depth / 2 + 0.01), black
            bridge, body_top, neck_end = 0.13, 0.37, 0.88
        front = depth / 2 + 0.008
        yield (
            box(0.052, neck_end - body_top, 0.024, 0.008)
            .move(0, (neck_end + body_top) / 2, front - 0.006)
            .project(0.2),
            neck_wood,
        )
        yield (
            box(0.05, neck_end - body_top + 0.02, 0.008, 0.002).move(
                0, (neck_end + body_top) / 2 - 0.01, front + 0.009
            ),
            Paint(color=(54, 36, 28)),
        )
        for fret in range(14):
            y = neck_end - (neck_end - bridge) * (1 - 2 ** (-(fret + 1) / 12))
            if y > body_top:
                yield box(0.05, 0.004, 0.004, 0.001).move(0, y, front + 0.014), steel
        head = [
            (-0.026, 0),
            (0.026, 0),
            (0.042, 0.05),
            (0.036, 0.15),
            (0.0, 0.165),
            (-0.036, 0.15),
            (-0.042, 0.05),
        ]
        yield (
            extrude(head, 0.022, 0.004).turn(x=-8).move(0, neck_end - 0.005, front - 0.002).project(0.2),
            neck_wood,
        )
        for i in (-1, 1):
            for k in range(3):
                y = neck_end + 0.045 + 0.036 * k
                peg = rod(
                    (i * 0.03, y, front - 0.008 - 0.14 * (y - neck_end)),
                    (i * 0.06, y, front - 0.008 - 0.14 * (y - neck_end)),
                    0.004,
                    sides=8,
                )
                yield peg, steel
                yield (
                    blob(0.016, 0.02, 0.01, sides=10, rows=6).move(i * 0.064, y, front - 0.008 - 0.14 * (y - neck_end)),
                    plain("cream"),
                )
        for string in range(6):
            x = (string - 2.5) * 0.0075
            yield (
                rod((x * 1.3, bridge, front + 0.013), (x, neck_end + 0.01, front + 0.0155), 0.0012, sides=6),
                steel,
            )

    return Design(caption, pieces)


def cake(dice: Dice) -> Design:
    tiers = dice.count(1, 3)
    icing, trim = dice.two("pink", "white", "light blue", "yellow", "brown", "light green", "purple", "cream")
    flavor = "chocolate" if icing == "brown" else ""
    candles = dice.count(1, 6)
    topper = dice.one("candles", "candles", "cherries")
    number = candles if topper == "candles" else candles + 3
    many = NUMBERS[number]
    top = f"{many} {'candle' if number == 1 else 'candles'}" if topper == "candles" else f"{many} cherries"
    plate = dice.one("white", "silver", "light blue", "gold")
    layers = {1: "", 2: "two-tier", 3: "three-tier"}[tiers]
    ground = flavor or icing
    party = "birthday cake" if topper == "candles" else "cake"
    dripping = dice.chance(0.6)
    drip = f" dripping {trim} icing" if dripping else f" {trim} piping"
    caption = dice.one(
        f"{an(words(layers, ground))} {party} with {top} on top",
        f"{an(words(layers, ground))} cake with{drip} and {top}",
        f"{an(words(layers, party))} with {ground} and {trim} icing and {top} on {an(plate)} stand",
    )

    def pieces() -> Pieces:
        frosting, second = plain(icing), plain(trim)
        dish = lathe(
            [
                (0, 0),
                (0.09, 0),
                (0.095, 0.006),
                (0.03, 0.02),
                (0.028, 0.05),
                (0.2, 0.062),
                (0.215, 0.072),
                (0.21, 0.076),
                (0, 0.07),
            ],
            48,
        )
        yield dish, plain(plate, 0.5)
        y, radius, tall = 0.07, {1: 0.165, 2: 0.17, 3: 0.175}[tiers], {1: 0.12, 2: 0.105, 3: 0.095}[tiers]
        for _ in range(tiers):
            edge = [
                (0, 0),
                (radius, 0),
                (radius, tall - 0.015),
                (radius - 0.005, tall - 0.004),
                (radius - 0.017, tall),
                (0, tall),
            ]
            yield lathe(edge, 48).move(y=y), frosting
            if dripping:
                count = 96
                around = circle(count)
                wave = np.cumsum(np.ones(count))
                fall = 0.3 + 0.22 * np.sin(wave * 2 * np.pi * 9 / count) + 0.14 * np.sin(wave * 2 * np.pi * 4 / count)
                skirt = []
                for out, at in ((0.0005, 1), (0.006, 1), (0.0075, 0.7), (0.0075, 0.25), (0.005, 0.05)):
                    skirt.append(
                        np.column_stack(
                            [
                                -around[:, 0] * (radius + out),
                                tall - 0.012 - fall * tall * at,
                                around[:, 1] * (radius + out),
                            ]
                        )
                    )
                for inset, rise in ((0.004, -0.004), (0.016, 0.004), (0.05, 0.005)):
                    skirt.append(
                        np.column_stack(
                            [
                                -around[:, 0] * (radius - inset),
                                np.full(count, tall + rise),
                                around[:, 1] * (radius - inset),
                            ]
                        )
                    )
                yield rings(np.stack(skirt)).move(y=y), second
            else:
                for at in range(int(radius * 125)):
                    angle = 2 * np.pi * at / int(radius * 125)
                    yield (
                        sphere(0.0125, 10).move(radius * 0.93 * np.cos(angle), y + tall, radius * 0.93 * np.sin(angle)),
                        second,
                    )
            for at in range(int(radius * 110)):
                angle = 2 * np.pi * at / int(radius * 110)
                yield (
                    sphere(0.014, 10).move(radius * 1.01 * np.cos(angle), y + 0.008, radius * 1.01 * np.sin(angle)),
                    second,
                )
            y, radius = y + tall, radius * 0.67
        radius /= 0.67
        for at in range(number):
            angle = 2 * np.pi * at / number
            reach = 0.0 if number == 1 else radius * 0.55
            x, z = reach * np.sin(angle), reach * np.cos(angle)
            if topper == "cherries":
                yield sphere(0.019, 16).move(x, y + 0.018, z), plain("red", 0.4)
                stem = curve([(x, y + 0.034, z), (x + 0.004, y + 0.05, z), (x + 0.014, y + 0.064, z)], 6)
                yield tube(stem, 0.0022, 6), plain("dark green")
            else:
                tone = ("red", "blue", "yellow", "green", "purple", "orange")[at % 6]
                yield (
                    rod((x, y, z), (x, y + 0.085, z), 0.0075),
                    stripes(COLORS[tone], COLORS["white"], upright=False),
                )
                yield (
                    lathe(smooth([(0, 0), (0.007, 0.008), (0.005, 0.018), (0, 0.03)], 10), 12).move(x, y + 0.089, z),
                    Paint(color=(255, 176, 40)),
                )
                yield rod((x, y + 0.085, z), (x, y + 0.092, z), 0.0015, sides=6), Paint(color=(30, 30, 30))

    return Design(caption, pieces)


def robot(dice: Dice) -> Design:
    color, accent = dice.two("red", "orange", "yellow", "teal", "blue", "light blue", "purple", "green", "silver")
    eyes = dice.one("yellow", "light blue", "green", "red")
    head = dice.one("square", "round", "domed")
    walk = dice.one("legs", "legs", "wheels")
    antennas = dice.count(0, 2)
    wide = dice.number(0.9, 1.15)
    aerial = {0: "", 1: "an antenna", 2: "two antennas"}[antennas]
    stands = "on two wheels" if walk == "wheels" else "with two legs"
    waving = dice.chance(0.5)
    waves = ", waving one arm" if waving else ""
    caption = dice.one(
        f"{an(color)} toy robot with {eyes} eyes{' and ' + aerial if aerial else ''}",
        f"{an(words(color))} robot with {an(head)} head{', ' + aerial if aerial else ''} and {accent} arms",
        f"a friendly {color} robot {stands}{waves}",
    )

    def pieces() -> Pieces:
        shell_paint, limb = plain(color, 0.5), plain(accent, 0.5)
        dark, lit = plain("dark gray", 0.6), plain(eyes, 0.4)
        width = 0.42 * wide
        yield box(width, 0.42, 0.3, 0.05).move(y=0.58), shell_paint
        yield box(width * 0.7, 0.2, 0.03, 0.012).move(0, 0.6, 0.145), plain("light gray", 0.5)
        for at, tone in enumerate(("red", "yellow", "green")):
            yield sphere(0.024, 14).move((at - 1) * width * 0.19, 0.645, 0.16), plain(tone)
        yield box(width * 0.5, 0.03, 0.03, 0.008).move(0, 0.57, 0.155), dark
        yield rod((0, 0.78, 0), (0, 0.86, 0), 0.07, sides=20), dark
        middle = 0.985
        if head == "square":
            yield box(0.36, 0.27, 0.28, 0.045).move(y=middle), shell_paint
        elif head == "round":
            yield blob(0.38, 0.31, 0.32, 0.75, 32, 18).move(y=middle), shell_paint
        else:
            dome = [
                (0, -0.13),
                (0.17, -0.13),
                (0.18, -0.115),
                *smooth([(0.18, -0.05), (0.17, 0.05), (0.11, 0.13), (0, 0.16)], 14),
            ]
            yield lathe(dome, 36).move(y=middle), shell_paint
        face = 0.14 if head == "square" else 0.155
        yield blob(0.29, 0.15, 0.06, 0.45, 24, 12).move(0, middle + 0.015, face - 0.005), dark
        for i in (-1, 1):
            yield blob(0.08, 0.08, 0.03, sides=20, rows=12).move(i * 0.068, middle + 0.025, face + 0.022), lit
            yield (
                blob(0.03, 0.03, 0.016, sides=12, rows=8).move(i * 0.068, middle + 0.025, face + 0.036),
                Paint(color=(24, 24, 28)),
            )
            yield rod((i * 0.17, middle, 0), (i * 0.225, middle, 0), 0.045, 0.035, 20), limb
            shoulder, low = (
                np.array([i * width / 2, 0.7, 0.0]),
                np.array([i * (width / 2 + 0.14), 0.42, 0.05]),
            )
            elbow = np.array([i * (width / 2 + 0.13), 0.58, 0.0])
            if waving and i > 0:
                elbow, low = (
                    np.array([width / 2 + 0.15, 0.68, 0.02]),
                    np.array([width / 2 + 0.22, 0.92, 0.05]),
                )
            yield sphere(0.065, 18).move(shoulder[0] + i * 0.02, shoulder[1]), limb
            line = curve([(shoulder[0] + i * 0.03, *shoulder[1:]), elbow, low], 14)
            ribs = 0.038 + 0.008 * (np.arange(15) % 2)
            yield tube(line, ribs, 14), dark
            yield sphere(0.06, 18).move(*low), limb
            down = -1 if not (waving and i > 0) else 1
            for side in (-1, 1):
                claw = curve(
                    np.array([(0, 0, 0), (side * 0.05, down * 0.06, 0), (side * 0.02, down * 0.11, 0)]) + low,
                    8,
                )
                yield tube(claw, np.linspace(0.024, 0.012, 9), 10), limb
            if walk == "legs":
                yield (
                    tube(
                        [(i * 0.1, y, 0) for y in np.linspace(0.38, 0.1, 11)],
                        0.045 + 0.008 * (np.arange(11) % 2),
                        14,
                    ),
                    dark,
                )
                yield blob(0.16, 0.13, 0.25, 0.5, 24, 12).move(i * 0.105, 0.065, 0.035), limb
            else:
                yield (
                    rod((i * (width / 2 - 0.07), 0.17, 0), (i * (width / 2 + 0.02), 0.17, 0), 0.17, sides=32),
                    Paint(color=(44, 44, 48)),
                )
                yield (
                    rod((i * (width / 2 + 0.015), 0.17, 0), (i * (width / 2 + 0.035), 0.17, 0), 0.09, sides=24),
                    limb,
                )
        if walk == "wheels":
            yield box(width * 0.72, 0.24, 0.2, 0.04).move(y=0.29), dark
        for at in range(antennas):
            x = 0.0 if antennas == 1 else (at - 0.5) * 0.18
            yield rod((x, middle + 0.1, 0), (x * 1.5, middle + 0.25, 0), 0.01), dark
            yield sphere(0.03, 16).move(x * 1.5, middle + 0.265, 0), lit
        yield tube([(x, middle - 0.085, face - 0.004) for x in (-0.07, 0.07)], 0.011, 8), dark

    return Design(caption, pieces)
