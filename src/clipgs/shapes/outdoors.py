"""Things under the sky: house, windmill, lighthouse, tree, cactus, mushroom."""

import numpy as np

from clipgs.shapes.design import NUMBERS, Design, Dice, Pieces, an, words
from clipgs.shapes.geometry import (
    Mesh,
    blob,
    box,
    circle,
    curve,
    extrude,
    join,
    lathe,
    rings,
    rod,
    smooth,
    sphere,
    tube,
)
from clipgs.shapes.paint import (
    COLORS,
    Paint,
    boards,
    bricks,
    dots,
    gradient,
    mottled,
    plain,
    shaded,
    stripes,
    tiles,
    wood,
)

PANE = Paint(color=(112, 164, 200), roughness=0.3)
MORTAR = (206, 198, 186)


def window(width: float, height: float, frame: Paint) -> list[tuple[Mesh, Paint]]:
    """A window that looks toward +z, its back at z = 0, with a cross of bars."""
    bars = [box(width + 0.16, 0.08, 0.1).move(y=y) for y in (-height / 2, height / 2)]
    bars += [box(0.08, height, 0.1).move(x=x) for x in (-width / 2 - 0.04, width / 2 + 0.04)]
    bars += [
        box(width, 0.045, 0.09),
        box(0.045, height, 0.09),
        box(width + 0.26, 0.05, 0.2).move(y=-height / 2 - 0.05),
    ]
    return [(box(width, height, 0.06), PANE), (join(bars), frame)]


def house(dice: Dice) -> Design:
    wall = dice.one("brick", "plank", "plaster", "brick")
    color = {
        "brick": dice.one("red", "brown", "yellow", "gray"),
        "plank": dice.one("blue", "red", "green", "yellow", "white", "light blue", "teal"),
        "plaster": dice.one("white", "cream", "yellow", "pink", "light blue", "light green"),
    }[wall]
    roof_color = dice.one("red", "dark gray", "brown", "navy blue", "dark green", "orange")
    door = dice.one("red", "blue", "green", "brown", "yellow", "white", "teal")
    floors = dice.count(1, 2)
    form = dice.one("gable", "hip", "gable")
    chimney = dice.chance(0.65)
    shutters = dice.chance(0.45)
    wide = dice.number(4.2, 6.0)
    size = {1: "small", 2: "two-story"}[floors]
    roof = f"{roof_color} {'hipped' if form == 'hip' else 'gabled'} roof"
    frames = "shutters" if shutters else "white window frames" if color != "white" else "gray window frames"
    home = "cottage" if floors == 1 else "house"
    made = {"brick": f"{color} brick", "plank": f"{color} wooden", "plaster": color}[wall]
    smoke = " and a chimney" if chimney else ""
    caption = dice.one(
        f"{an(words(size, made))} house with {an(roof_color)} roof and {an(door)} door",
        f"{an(made)} house with {an(door)} door, {an(roof)}{smoke}"
        if chimney
        else f"{an(made)} house with {an(door)} door and {an(roof)}",
        f"{an(words(size, made))} {home} with {an(roof_color)} tiled roof{smoke or f' and {frames}'}",
    )

    def pieces() -> Pieces:
        tone = COLORS[color]
        if wall == "brick":
            base = {
                "red": (168, 74, 58),
                "brown": (128, 88, 66),
                "yellow": (208, 172, 104),
                "gray": (140, 138, 138),
            }
            coat, repeat = bricks(base[color], MORTAR), 1.0
        elif wall == "plank":
            coat, repeat = boards(shaded(tone, 1.15), shaded(tone, 0.8), rows=5), 1.0
        else:
            coat, repeat = Paint(color=tone), 1.0
        trim = plain("white") if color != "white" else plain("light gray")
        depth, tall = wide * 0.78, 2.5 * floors
        pitch = 0.62
        ridge = depth / 2 * pitch if form == "gable" else depth / 2 * 0.6
        yield box(wide + 0.3, 0.3, depth + 0.3, 0.05).move(y=0.15), plain("gray")
        if form == "gable":  # the ridge runs along x, gables look sideways
            gable = [
                (-depth / 2, 0.25),
                (depth / 2, 0.25),
                (depth / 2, tall),
                (0, tall + ridge),
                (-depth / 2, tall),
            ]
            yield extrude(gable, wide).turn(y=90).project(repeat), coat
            slope = np.hypot(depth / 2, ridge)
            over = 0.35
            run = slope * (1 + over / (depth / 2))
            cover = box(wide + 0.7, 0.16, run, 0.04).tile((wide + 0.7) / 1.3, run / 1.3)
            tilt = np.degrees(np.arctan2(ridge, depth / 2))
            for back in (0, 180):
                shift = cover.move(0, 0.07, run / 2 - 0.04).turn(x=tilt).move(y=tall + ridge).turn(y=back)
                yield shift, tiles(COLORS[roof_color])
            yield (
                rod((-wide / 2 - 0.36, tall + ridge + 0.1, 0), (wide / 2 + 0.36, tall + ridge + 0.1, 0), 0.12),
                Paint(color=shaded(COLORS[roof_color], 0.7)),
            )
        else:
            yield box(wide, tall - 0.2, depth).move(y=tall / 2 + 0.1).project(repeat), coat
            over = 0.4
            eave = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)]) * [wide / 2 + over, depth / 2 + over]
            top = np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)]) * [max(wide - depth, 0.2) / 2 + 0.01, 0.02]
            layers = [(eave, tall - 0.12), (eave, tall + 0.02), (top, tall + ridge + 0.5)]
            yield (
                rings(np.stack([np.column_stack([p[:, 0], np.full(4, y), p[:, 1]]) for p, y in layers])).project(1.3),
                tiles(COLORS[roof_color]),
            )
        front = depth / 2
        yield box(1.05, 1.95, 0.14, 0.03).move(0, 1.25, front), trim
        yield box(0.86, 1.8, 0.2, 0.03).move(0, 1.2, front + 0.01), plain(door)
        yield sphere(0.06, 12).move(0.3, 1.15, front + 0.14), plain("gold", 0.4)
        for step in range(2):
            yield (
                box(1.5 - 0.2 * step, 0.16, 0.9 - 0.35 * step, 0.03).move(
                    0, 0.08 + 0.15 * step, front + 0.45 - 0.17 * step
                ),
                plain("light gray"),
            )
        places = []
        for floor in range(floors):
            y = 1.45 + 2.4 * floor
            across = (-1, 1) if floor == 0 else (-1, 0, 1)
            places += [(x * wide * 0.31, y, front, 0) for x in across]
            places += [(x * wide * 0.25, y, front, 180) for x in (-1, 1)]
            places += [(z * depth * 0.22, y, wide / 2, 90 * side) for z in (-1, 1) for side in (-1, 1)]
        for x, y, out, angle in places:
            for mesh, paint in window(0.72, 0.95, trim):
                yield mesh.move(x, y, out).turn(y=angle), paint
            if shutters and angle == 0:
                for side in (-1, 1):
                    yield box(0.28, 1.05, 0.07, 0.015).move(x + side * 0.58, y, out + 0.02), plain(door)
        if chimney:
            x, z = wide * 0.28, -depth * 0.16
            top_y = tall + ridge + 0.55
            yield box(0.62, 1.7, 0.62).move(x, top_y - 0.85, z).project(1.0), bricks((150, 70, 56), MORTAR)
            yield box(0.76, 0.14, 0.76, 0.03).move(x, top_y, z), plain("gray")
            yield rod((x, top_y, z), (x, top_y + 0.26, z), 0.16), Paint(color=(150, 84, 60))
        for side in (-1, 1):  # bushes by the door
            for at, r in ((0.24, 0.34), (0.36, 0.4)):
                bush = blob(2 * r, 1.6 * r, 1.8 * r, sides=16, rows=10).move(
                    side * wide * at, 0.3 + r * 0.5, front + 0.35
                )
                yield bush.tint(mottled((74, 138, 66), 0.5)), Paint()

    return Design(caption, pieces)


def windmill(dice: Dice) -> Design:
    wall = dice.one("white", "brick", "wooden", "white")
    cap, blade = dice.two("red", "blue", "brown", "dark gray", "teal", "orange", "green", "navy blue")
    blades = dice.one(4, 4, 6)
    sail = dice.one("white", "cream", blade)
    turn = dice.number(8, 38)
    gallery = dice.chance(0.5)
    tall = dice.number(2.9, 3.7)
    form = "tall" if tall > 3.45 else "short" if tall < 3.1 else ""
    walk = " and a wooden balcony" if gallery else ""
    caption = dice.one(
        f"{an(words(form, wall))} windmill with {an(cap)} cap and {NUMBERS[blades]} {sail} blades",
        f"{an(words('old', wall))} windmill with {NUMBERS[blades]} {sail} blades{walk}",
        f"a windmill with a round {wall} tower, {an(cap)} roof and {sail} sails",
    )

    def pieces() -> Pieces:
        coat = {
            "white": plain("white"),
            "brick": bricks((160, 76, 60), MORTAR, rows=6),
            "wooden": boards((176, 124, 78), (120, 80, 48), rows=6),
        }[wall]
        low, high = 1.05, 0.66
        tower = lathe([(0, 0), (low, 0), (high, tall), (0, tall)], 32)
        yield tower.tile(6, 2.6), coat
        yield (
            lathe([(low - 0.02, 0), (low + 0.1, 0), (low + 0.06, 0.28), (low - 0.06, 0.3)], 32),
            plain("gray"),
        )
        dome = [
            (high - 0.1, tall - 0.05),
            (high + 0.12, tall - 0.05),
            (high + 0.12, tall + 0.04),
            *smooth(
                [
                    (high + 0.08, tall + 0.06),
                    (high * 0.85, tall + 0.45),
                    (high * 0.4, tall + 0.78),
                    (0, tall + 0.92),
                ],
                14,
            ),
        ]
        yield lathe(dome, 32), plain(cap)
        yield sphere(0.08, 14).move(y=tall + 0.94), plain(cap)
        front = low + 0.02
        yield box(0.62, 1.1, 0.2, 0.03).move(0, 0.58, front - 0.12), wood("walnut")
        yield (
            extrude([(0.31 * np.cos(a), 0.31 * np.sin(a)) for a in np.linspace(0, np.pi, 13)], 0.2, 0.02).move(
                0, 1.12, front - 0.14
            ),
            wood("walnut"),
        )
        for y in (tall * 0.52, tall * 0.76):
            for degrees in (0, 120, 240) if y < tall * 0.6 else (60, 180, 300):
                out = low + (high - low) * y / tall
                for mesh, paint in window(0.3, 0.4, plain("brown")):
                    yield mesh.move(0, y, out).turn(y=degrees + 20), paint
        if gallery:
            y = tall * 0.4
            out = low + (high - low) * 0.4
            yield (
                lathe([(out - 0.05, y), (out + 0.42, y), (out + 0.42, y + 0.07), (out - 0.05, y + 0.07)], 32),
                wood("oak"),
            )
            ring = [
                ((out + 0.38) * np.cos(a), y + 0.4, (out + 0.38) * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 49)
            ]
            yield tube(ring, 0.03, 8), wood("oak")
            for at in range(16):
                angle = 2 * np.pi * at / 16
                x, z = (out + 0.38) * np.cos(angle), (out + 0.38) * np.sin(angle)
                yield rod((x, y, z), (x, y + 0.4, z), 0.025, sides=8), wood("oak")
        hub = tall + 0.22
        reach = 2.1
        yield rod((0, hub, 0.3), (0, hub, high + 0.5), 0.11), plain("dark brown")
        yield sphere(0.17, 18).move(0, hub, high + 0.5), plain(cap)
        for number in range(blades):
            spar = rod((0, 0, 0), (0, reach, 0), 0.055, 0.035, 10)
            cloth = box(0.46, reach * 0.74, 0.035, 0.01).move(0.25, reach * 0.6)
            slats = [box(0.5, 0.035, 0.07).move(0.25, reach * (0.25 + 0.14 * k)) for k in range(6)]
            slats.append(box(0.04, reach * 0.75, 0.07).move(0.48, reach * 0.6))
            for mesh, paint in (
                (spar, plain("dark brown")),
                (cloth, plain(sail)),
                (join(slats), plain("brown")),
            ):
                yield mesh.turn(z=turn + 360 * number / blades).move(0, hub, high + 0.5), paint

    return Design(caption, pieces)


def lighthouse(dice: Dice) -> Design:
    color = dice.one("red", "blue", "black", "teal", "orange", "green")
    pattern = dice.one("bands", "bands", "spiral", "plain")
    bands = dice.count(3, 5)
    tall = dice.number(3.2, 4.4)
    form = "tall" if tall > 4.0 else "short" if tall < 3.5 else ""
    hut = dice.chance(0.6)
    cap = dice.one("red", "black", "dark green", color)
    look = {
        "bands": f"{color} and white striped",
        "spiral": f"{color} and white spiral-striped",
        "plain": "white",
    }[pattern]
    cottage = " beside a small house" if hut else " on a rock"
    caption = dice.one(
        f"{an(words(form, look))} lighthouse{cottage}",
        f"{an(words(form, look))} lighthouse with {an(cap)} roof{cottage}",
        f"a lighthouse with {NUMBERS[bands]} {color} bands and {an(cap)} roof"
        if pattern == "bands"
        else f"{an(words(form, 'lighthouse'))} with {an(look)} tower and {an(cap)} roof",
    )

    def pieces() -> Pieces:
        one = COLORS[color]
        low, high, ground = 0.72, 0.44, 0.35

        def ragged(points: np.ndarray) -> np.ndarray:
            angle = np.arctan2(points[:, 2], points[:, 0])
            bump = 1 + 0.09 * np.sin(3 * angle + 1) + 0.06 * np.sin(7 * angle)
            points[:, 0] *= bump
            points[:, 2] *= bump
            return points

        rock = lathe(smooth([(1.5, 0), (1.42, 0.18), (1.15, 0.33), (0.8, 0.38), (0, 0.38)], 14), 40)
        yield rock.warp(ragged).tint(mottled((128, 122, 112), 0.7, 0.3)), Paint()
        rows = np.linspace(0, 1, 25)
        tower = lathe(
            [
                (0, ground),
                *[(low + (high - low) * t**0.8, ground + tall * t) for t in rows],
                (0, ground + tall),
            ],
            48,
        )
        if pattern == "bands":
            white = COLORS["white"]
            share = np.linspace(0, tall, 2 * bands + 1)
            for k in range(2 * bands):
                t = np.linspace(share[k], share[k + 1], 5) / tall
                ring = [(low + (high - low) * q**0.8, ground + tall * q) for q in t]
                section = lathe([(0, ring[0][1]), *ring, (0, ring[-1][1])], 48)
                yield section, Paint(color=one if k % 2 == 0 else white)
        elif pattern == "spiral":
            mesh = tower.tile(2, 0)
            height = mesh.points[mesh.faces][:, :, 1:2]
            shifted = mesh.uv + np.concatenate([(height - ground) / tall * 2.2, 0 * height], axis=2)
            yield Mesh(mesh.points, mesh.faces, shifted), stripes(one, COLORS["white"], size=128)
        else:
            yield tower, plain("white")
        for degrees, y in ((20, 0.3), (20, 0.62), (140, 0.48), (260, 0.4), (200, 0.75)):
            for mesh, paint in window(0.17, 0.26, plain("dark gray")):
                out = low + (high - low) * y**0.8 - 0.01
                yield mesh.scale(1, 1, 0.6).move(0, ground + tall * y, out).turn(y=degrees), paint
        yield box(0.4, 0.66, 0.16, 0.03).move(0, ground + 0.36, low - 0.04), wood("walnut")
        top = ground + tall
        yield (
            lathe(
                [
                    (high - 0.05, top - 0.1),
                    (high + 0.06, top - 0.1),
                    (high + 0.24, top),
                    (high + 0.24, top + 0.06),
                    (0, top + 0.06),
                ],
                40,
            ),
            plain("dark gray"),
        )
        for y in (0.17, 0.29):
            rail = [
                ((high + 0.21) * np.cos(a), top + y, (high + 0.21) * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 41)
            ]
            yield tube(rail, 0.014, 6), plain("dark gray")
        for at in range(14):
            angle = 2 * np.pi * at / 14
            x, z = (high + 0.21) * np.cos(angle), (high + 0.21) * np.sin(angle)
            yield rod((x, top, z), (x, top + 0.3, z), 0.014, sides=6), plain("dark gray")
        yield (
            lathe([(0, top + 0.05), (0.27, top + 0.05), (0.27, top + 0.55), (0, top + 0.55)], 24),
            Paint(color=(252, 220, 120)),
        )
        for at in range(8):
            angle = 2 * np.pi * at / 8
            x, z = 0.28 * np.cos(angle), 0.28 * np.sin(angle)
            yield rod((x, top + 0.05, z), (x, top + 0.56, z), 0.022, sides=8), plain("dark gray")
        yield (
            lathe(
                [
                    (0.2, top + 0.54),
                    (0.38, top + 0.54),
                    (0.36, top + 0.6),
                    *smooth([(0.3, top + 0.68), (0.15, top + 0.82), (0.04, top + 0.9), (0, top + 0.92)], 10),
                ],
                32,
            ),
            (plain(cap)),
        )
        yield sphere(0.06, 14).move(y=top + 0.94), plain(cap)
        if hut:
            gable = [(-0.36, 0), (0.36, 0), (0.36, 0.5), (0, 0.82), (-0.36, 0.5)]
            yield extrude(gable, 0.75).move(0.92, 0.28, 0.25), plain("white")
            for side in (-1, 1):
                slab = box(0.56, 0.06, 0.9, 0.015).move(0.25, 0, 0).turn(z=-41.6)
                slab = slab if side > 0 else slab.mirror()
                yield slab.move(0.92, 0.28 + 0.85, 0.25).project(0.4), tiles(COLORS[cap])
            yield box(0.2, 0.36, 0.05, 0.01).move(0.92, 0.47, 0.63), plain("brown")

    return Design(caption, pieces)


def foliage(dice_points: np.ndarray, size: float, color: tuple[int, int, int]) -> Mesh:
    """A lumpy ball of leaves about each of the points [K, 4] (x, y, z, radius), mottled."""
    lumps = []
    for x, y, z, r in dice_points:
        ball = blob(2 * r, 1.75 * r, 2 * r, sides=22, rows=14)
        scale = 7.0 / size

        def rough(p: np.ndarray, r: float = r, scale: float = scale, phase: float = 10 * x + 7 * z) -> np.ndarray:
            wave = np.sin(p[:, 0] * scale * 1.3 + phase) + np.sin(p[:, 1] * scale * 1.7) + np.sin(p[:, 2] * scale * 1.5)
            return p * (1 + 0.07 * wave[:, None])

        lumps.append(ball.warp(rough).move(x, y, z))
    crown = join(lumps)
    low, high = crown.points[:, 1].min(), crown.points[:, 1].max()

    def leaves(points: np.ndarray) -> np.ndarray:  # lighter toward the top
        light = gradient(shaded(color, 0.72), shaded(color, 1.18), low, high)(points)
        return light * (mottled((255, 255, 255), 0.3 * size, 0.16)(points))

    return crown.tint(leaves)


def tree(dice: Dice) -> Design:
    style = dice.one("broadleaf", "broadleaf", "conifer", "palm", "birch")
    season = "green"
    if style == "broadleaf":
        season = dice.one("green", "green", "autumn", "blossom")
    elif style == "birch":
        season = dice.one("green", "autumn")
    leaf = {
        "green": dice.one("green", "dark green", "light green"),
        "autumn": dice.one("red", "orange", "yellow"),
        "blossom": "pink",
    }[season]
    fruit = dice.one("red apples", "oranges") if season == "green" and style == "broadleaf" and dice.chance(0.4) else ""
    tiers = dice.count(3, 5)
    snow = style == "conifer" and dice.chance(0.35)
    tall = dice.number(0.85, 1.2)
    form = "tall" if tall > 1.1 else "small" if tall < 0.93 else ""
    fronds = dice.count(7, 10)
    coconuts = dice.chance(0.6)
    knobs = [(dice.number(0, 1), dice.number(0, 1), dice.number(0, 1)) for _ in range(24)]
    match style:
        case "conifer":
            white = " dusted with snow" if snow else ""
            caption = dice.one(
                f"{an(words(form, leaf))} fir tree with {NUMBERS[tiers]} tiers of branches{white}",
                f"{an(words(form, leaf))} pine tree{white or ' with a brown trunk'}",
                f"{an(words(form, 'evergreen'))} tree in {leaf}{white}",
            )
        case "palm":
            nuts = " and coconuts" if coconuts else ""
            caption = dice.one(
                f"{an(words(form, 'palm tree'))} with {NUMBERS[fronds]} {leaf} fronds{nuts}",
                f"a palm tree with a bent trunk and {leaf} leaves"
                if not coconuts
                else f"a coconut palm tree with {leaf} leaves",
            )
        case _:
            trunk = "white birch trunk" if style == "birch" else "brown trunk"
            crown = {
                "green": f"{leaf} leaves",
                "autumn": f"{leaf} autumn leaves",
                "blossom": f"{leaf} blossoms",
            }[season]
            with_fruit = f" and {fruit}" if fruit else f" and {an(trunk)}"
            caption = dice.one(
                f"{an(words(form, 'tree'))} with {crown}{with_fruit}",
                f"{an(words(form, 'birch' if style == 'birch' else 'leafy'))} tree with {crown}"
                f"{with_fruit if fruit else ''}",
            )

    def pieces() -> Pieces:
        tone = (240, 160, 190) if leaf == "pink" else COLORS[leaf]
        bark = wood("walnut")
        if style == "palm":
            trunk = curve([(0, 0, 0), (0.12, 0.7, 0.03), (0.34, 1.4, 0.05), (0.46, 2.1 * tall, 0.02)], 26)
            ringed = 0.13 - 0.05 * np.linspace(0, 1, 27) + 0.014 * (np.arange(27) % 2)
            yield tube(trunk, ringed, 16).tint(mottled((150, 112, 72), 0.5)), Paint()
            top = trunk[-1]
            for at in range(fronds):
                angle = 2 * np.pi * at / fronds + 0.5 * knobs[at][0]
                reach, droop = 0.95 + 0.25 * knobs[at][1], 0.25 + 0.5 * knobs[at][2]
                s = np.linspace(0, 1, 15)
                out, up = reach * s, 0.55 * s - (0.55 + droop) * s**2.1
                half = (
                    0.17 * np.sin(np.pi * np.clip(s * 0.97 + 0.03, 0, 1)) ** 0.7 * (1 - 0.25 * (np.arange(15) % 2))
                    + 0.008
                )
                blade = np.stack(
                    [
                        np.stack([out, up - 0.1, half], 1),
                        np.stack([out, up + 0.02, 0 * half], 1),
                        np.stack([out, up - 0.1, -half], 1),
                        np.stack([out, up - 0.012, 0 * half], 1),
                    ],
                    axis=1,
                )
                frond = rings(blade).turn(y=-np.degrees(angle)).move(*top)
                yield frond.tint(mottled(tone, 0.6)), Paint()
            if coconuts:
                for at in range(4):
                    angle = 2 * np.pi * at / 4 + 0.4
                    yield (
                        sphere(0.095, 16).move(
                            0.13 * np.cos(angle) + top[0], top[1] - 0.1, 0.13 * np.sin(angle) + top[2]
                        ),
                        plain("brown"),
                    )
            yield lathe([(0, 0), (0.5, 0), (0.44, 0.06), (0.2, 0.1), (0, 0.11)], 32), plain("beige")
            return
        if style == "conifer":
            yield rod((0, 0, 0), (0, 0.75, 0), 0.16, 0.12, 16).tile(3, 1), bark
            height = 2.2 * tall
            for tier in range(tiers):
                t = tier / tiers
                base, reach = 0.6 + height * t * 0.85, 0.8 * (1 - t) ** 0.85 + 0.1
                peak = base + height / tiers * 1.25
                around = circle(48)
                jag = 1 + 0.07 * np.cos(12 * 2 * np.pi * np.arange(48) / 48)
                layers = []
                for share, y, wave in (
                    (0.3, base + 0.1, 0),
                    (0.9, base - 0.01, 1),
                    (1.0, base, 1),
                    (0.62, base + (peak - base) * 0.34, 0.6),
                    (0.3, base + (peak - base) * 0.66, 0.3),
                    (0.01, peak, 0),
                ):
                    ring = reach * share * (1 + (jag - 1) * wave)
                    sag = -0.06 * (jag - 1) / 0.07 * wave * (share > 0.8)
                    layers.append(np.stack([-around[:, 0] * ring, y + sag, around[:, 1] * ring], axis=1))
                cone = rings(np.stack(layers))
                low, high = shaded(tone, 0.7), shaded(tone, 1.12)
                colors = gradient(
                    low,
                    (246, 248, 250) if snow else high,
                    base + 0.05,
                    peak - 0.02 if not snow else base + (peak - base) * 0.5,
                )
                yield cone.tint(colors), Paint()
            return
        trunk_top = 1.05 * tall
        if style == "birch":
            pole = tube(
                curve([(0, 0, 0), (0.03, 0.5, 0), (-0.02, trunk_top, 0), (0.02, trunk_top + 0.8, 0)], 20),
                np.linspace(0.1, 0.05, 21),
                16,
            )
            yield pole.tile(2, 5), dots((226, 222, 214), (70, 66, 62), size=64)
            # A narrow crown: lumps all over an egg, by the golden angle, and two that fill it.
            lumps = [(0.0, trunk_top + 0.35, 0.0, 0.4), (0.0, trunk_top + 0.72, 0.0, 0.33)]
            for k in range(16):
                share = (k + 0.5) / 16
                reach = 0.42 * np.sin(np.pi * share**0.8)
                lumps.append(
                    (
                        reach * np.cos(2.4 * k),
                        trunk_top - 0.05 + 1.15 * share,
                        reach * np.sin(2.4 * k),
                        0.17 + 0.07 * knobs[k][0],
                    )
                )
        else:
            yield (
                lathe(
                    smooth([(0.3, 0), (0.17, 0.12), (0.13, 0.5), (0.14, trunk_top), (0.1, trunk_top + 0.3)], 16),
                    20,
                ).tile(3, 1),
                bark,
            )
            for k in range(3):
                angle = 2.1 * k + knobs[0][0]
                end = (0.5 * np.cos(angle), trunk_top + 0.35, 0.5 * np.sin(angle))
                yield (
                    tube(
                        curve([(0, trunk_top * 0.7, 0), (end[0] * 0.5, trunk_top, end[2] * 0.5), end], 8),
                        np.linspace(0.08, 0.04, 9),
                    ),
                    bark,
                )
            lumps = [(0.0, trunk_top + 0.72, 0.0, 0.62)]
            for k in range(7):
                angle = 2 * np.pi * k / 7 + knobs[k][0] * 0.6
                lumps.append(
                    (
                        0.52 * np.cos(angle),
                        trunk_top + 0.35 + 0.3 * knobs[k][1],
                        0.52 * np.sin(angle),
                        0.36 + 0.1 * knobs[k][2],
                    )
                )
        spots = np.array(lumps)
        crown = foliage(spots, 0.9, tone)
        yield crown, Paint()
        if fruit:
            for k in range(16):
                x, y, z, r = spots[k % len(spots)]
                a, e = 2 * np.pi * knobs[k][0], 0.9 * (knobs[k][1] - 0.45)
                center = np.array([0, trunk_top + 0.5, 0])
                point = np.array([x, y, z]) + 1.02 * r * np.array(
                    [np.cos(a) * np.cos(e), 0.85 * np.sin(e), np.sin(a) * np.cos(e)]
                )
                away = point - center
                point = center + away * max(1.0, 0.78 / np.sqrt((away * away).sum()))
                yield sphere(0.075, 14).move(*point), plain("red" if fruit == "red apples" else "orange", 0.5)

    return Design(caption, pieces)


def ribbed(line: np.ndarray, radius: np.ndarray, ribs: int) -> Mesh:
    """A fluted pipe along a path: two points a rib."""
    smooth_pipe = tube(line, radius, ribs * 4)
    count = ribs * 4
    flute = 1 + 0.085 * np.cos(2 * np.pi * np.arange(count) / 4)
    rows = smooth_pipe.points[: len(line) * count].reshape(len(line), count, 3)
    return rings(line[:, None] + (rows - line[:, None]) * flute[None, :, None])


def cactus(dice: Dice) -> Design:
    style = dice.one("column", "column", "ball", "paddle")
    pot, band = dice.two("orange", "red", "blue", "yellow", "teal", "white", "pink", "purple", "brown")
    arms = dice.count(1, 3)
    flower = dice.one("pink", "red", "yellow", "white", "")
    green = dice.one("green", "dark green", "light green")
    banded = dice.chance(0.5)
    planter = f"{an(pot)} pot" + (f" with {an(band)} band" if banded else "")
    bloom = f" with {an(flower)} flower" if flower else ""
    match style:
        case "column":
            limbs = f"{NUMBERS[arms]} {'arm' if arms == 1 else 'arms'}"
            caption = dice.one(
                f"{an(green)} cactus with {limbs} in {planter}",
                f"a saguaro cactus with {limbs}{' and ' + an(flower) + ' flower' if flower else ''} in {an(pot)} pot",
            )
        case "ball":
            caption = dice.one(
                f"a round {green} cactus{bloom} in {planter}", f"a small ball cactus{bloom} in {planter}"
            )
        case _:
            caption = dice.one(
                f"{an(green)} prickly pear cactus{bloom} in {planter}",
                f"a potted {green} cactus with flat round pads{bloom}",
            )

    def pieces() -> Pieces:
        clay = plain(pot)
        profile = [
            (0, 0),
            (0.2, 0),
            (0.27, 0.3),
            (0.31, 0.3),
            (0.32, 0.31),
            (0.32, 0.4),
            (0.27, 0.4),
            (0.26, 0.35),
            (0, 0.35),
        ]
        yield lathe(profile, 40), clay
        yield lathe([(0, 0.34), (0.265, 0.34), (0.24, 0.37), (0, 0.38)], 32), Paint(color=(92, 66, 46))
        if banded:
            yield lathe([(0.21, 0.1), (0.2285, 0.1), (0.2495, 0.19), (0.23, 0.19)], 40), plain(band)
        tone = COLORS[green]
        skin = gradient(shaded(tone, 0.72), shaded(tone, 1.14), 0.36, 1.3)
        spines: list[Mesh] = []

        def spike(x: float, y: float, z: float, nx: float, ny: float, nz: float) -> None:
            spines.append(rod((x, y, z), (x + 0.045 * nx, y + 0.045 * ny, z + 0.045 * nz), 0.0055, 0.0015, 5))

        peak = np.array([0.0, 1.28, 0.0])
        if style == "column":
            height = np.array([0.34, 0.5, 0.7, 0.9, 1.05, 1.15, 1.22, 1.26, 1.275])
            radius = np.array([0.14, 0.155, 0.16, 0.155, 0.145, 0.12, 0.085, 0.045, 0.012])
            stem = np.stack([0 * height, height, 0 * height], axis=1)
            yield ribbed(stem, radius, 10).tint(skin), Paint()
            for arm in range(arms):
                angle = (0.12, np.pi + 0.1, 1.75)[arm]
                y0 = (0.68, 0.56, 0.82)[arm]
                out = np.array([np.cos(angle), 0, np.sin(angle)])
                bend = curve(
                    [
                        out * 0.1 + [0, y0, 0],
                        out * 0.24 + [0, y0 + 0.01, 0],
                        out * 0.32 + [0, y0 + 0.1, 0],
                        out * 0.33 + [0, y0 + 0.26, 0],
                        out * 0.33 + [0, y0 + 0.33, 0],
                    ],
                    20,
                )
                width = 0.078 * np.sqrt(np.clip(1 - np.clip((np.arange(21) - 14) / 6, 0, 0.99) ** 2, 0.03, 1))
                yield ribbed(bend, width, 8).tint(skin), Paint()
            for k in range(50):
                angle, y = 2 * np.pi * (k % 10) / 10, 0.44 + 0.16 * (k // 10)
                r = float(np.interp(y, height, radius)) * 1.07
                spike(r * np.cos(angle), y, r * np.sin(angle), np.cos(angle), 0.3, np.sin(angle))
        elif style == "ball":
            t = np.linspace(-0.85, 1, 17) * np.pi / 2
            radius, height = 0.31 * np.cos(t) + 0.006, 0.64 + 0.3 * np.sin(t)
            yield ribbed(np.stack([0 * t, height, 0 * t], 1), radius, 14).tint(skin), Paint()
            for k in range(70):
                angle, e = 2 * np.pi * (k % 14) / 14, np.radians(-20 + 22 * (k // 14))
                nx, ny, nz = np.cos(angle) * np.cos(e), np.sin(e), np.sin(angle) * np.cos(e)
                spike(0.33 * nx, 0.64 + 0.31 * ny, 0.33 * nz, nx, ny, nz)
            peak = np.array([0.0, 0.95, 0.0])
        else:
            pads = [
                (0.0, 0.62, 0.0, 0.25, 0, 0),
                (-0.2, 0.98, 0.02, 0.19, 32, 15),
                (0.2, 1.0, -0.02, 0.18, -30, -20),
                (0.03, 1.12, 0.05, 0.16, -4, 30),
                (-0.33, 1.25, 0.0, 0.13, 20, 0),
            ]
            for x, y, z, r, lean, yaw in pads:
                pad = blob(1.7 * r, 2.3 * r, 0.5 * r, 0.9, 26, 16).turn(y=yaw, z=lean).move(x, y, z)
                yield pad.tint(skin), Paint()
                for k in range(14):
                    a = 2.4 * k
                    q = np.sqrt((k + 0.5) / 14) * 0.9
                    side = 1 if k % 2 else -1
                    local = np.array(
                        [
                            q * 0.85 * r * np.cos(a),
                            q * 1.15 * r * np.sin(a),
                            side * 0.25 * r * np.sqrt(1 - q * q),
                        ]
                    )
                    dot = Mesh(local[None], np.zeros((0, 3), int), np.zeros((0, 3, 2))).turn(y=yaw, z=lean).points[0]
                    at_x, at_y, at_z = dot + np.array([x, y, z])
                    spike(at_x, at_y, at_z, 0.0, 0.3, float(side))
            peak = np.array([0.03, 1.3, 0.05])
        yield join(spines), plain("cream")
        if flower:
            petals = []
            for k in range(8):
                petals.append(blob(0.13, 0.03, 0.065, sides=12, rows=8).move(x=0.065).turn(z=38).turn(y=45 * k))
            yield join(petals).move(*peak), plain(flower)
            yield sphere(0.032, 12).move(y=0.025).move(*peak), plain("gold")

    return Design(caption, pieces)


def mushroom(dice: Dice) -> Design:
    cap = dice.one("red", "orange", "brown", "yellow", "purple", "teal", "pink", "blue")
    count = dice.count(1, 3)
    spotted = dice.chance(0.7)
    form = dice.one("domed", "flat", "pointed")
    face = dice.one("", "", "a little door and a window")
    stem_color = dice.one("cream", "white", "beige")
    tall = dice.number(0.8, 1.25)
    height = "tall" if tall > 1.12 else "stubby" if tall < 0.9 else ""
    spots = "white spots" if spotted else f"{an(stem_color)} stem"
    look = words("" if form == "domed" else form, cap, "cap")
    if face and count == 1:
        caption = dice.one(
            f"{an(words(height, 'mushroom house'))} with {an(look)}, {face}",
            f"a fairy mushroom with {an(look)} and {face}",
        )
    elif count == 1:
        caption = dice.one(
            f"{an(words(height, cap))} mushroom with {spots}",
            f"{an(words(height, 'mushroom'))} with {an(look)}{' and white spots' if spotted else ''}",
        )
    else:
        caption = dice.one(
            f"{NUMBERS[count]} {cap} mushrooms with {spots if spotted else stem_color + ' stems'}",
            f"a group of {NUMBERS[count]} mushrooms with {form + ' ' if form != 'domed' else ''}{cap} caps"
            f"{' and white spots' if spotted else ''}",
        )

    def pieces() -> Pieces:
        def one(size: float, lift: float) -> Pieces:
            stem = smooth([(0.26, 0.0), (0.21, 0.12), (0.15, 0.4), (0.16, lift)], 18)
            yield (
                lathe([(0, 0), *stem, (0, lift)], 28)
                .scale(size, size, size)
                .tint(gradient(shaded(COLORS[stem_color], 0.8), COLORS[stem_color], 0.0, 0.5 * size)),
                Paint(),
            )
            yield (
                lathe([(0.15, lift - 0.15), (0.22, lift - 0.22), (0.235, lift - 0.2), (0.16, lift - 0.1)], 28).scale(
                    size, size, size
                ),
                plain(stem_color),
            )
            crest = {"domed": (0.5, 0.42), "flat": (0.58, 0.24), "pointed": (0.46, 0.6)}[form]
            wide, high = crest
            base = lift - 0.06
            if form == "pointed":
                over = smooth(
                    [
                        (wide, base),
                        (wide * 0.85, base + high * 0.3),
                        (wide * 0.42, base + high * 0.75),
                        (0.0, base + high),
                    ],
                    20,
                )
            else:
                t = np.linspace(0, np.pi / 2, 13)
                over = [(max(float(wide * np.cos(a)), 0.0), base + float(high * np.sin(a))) for a in t]
            rim = [(wide - 0.03, base - 0.025), (wide - 0.006, base - 0.02)]
            yield (
                lathe([(0.1, base + 0.05), *rim, *over, (0, over[-1][1])], 32).scale(size, size, size),
                plain(cap, 0.5),
            )
            gills = [
                box(wide - 0.16, 0.05, 0.012).move(wide / 2 + 0.05, base - 0.005).turn(y=22.5 * k) for k in range(16)
            ]
            yield join(gills).scale(size, size, size), plain("cream")
            yield (
                lathe(
                    [
                        (0.12, base + 0.03),
                        (0.14, base - 0.012),
                        (wide - 0.04, base - 0.028),
                        (wide - 0.06, base),
                    ],
                    40,
                ).scale(size, size, size),
                Paint(color=(226, 204, 170)),
            )
            if spotted:
                line = np.array(over)
                for level, number, r in ((0.18, 8, 0.055), (0.5, 6, 0.075), (0.8, 3, 0.065)):
                    for k in range(number):
                        at = level * (len(line) - 1)
                        i = int(at)
                        radius, y = line[i] + (line[i + 1] - line[i]) * (at - i)
                        along = line[i + 1] - line[i]
                        tilt = np.degrees(np.arctan2(-along[0], along[1]))
                        spot = blob(2 * r, 2 * r, 0.045, sides=12, rows=4).turn(x=-tilt)
                        spot = spot.move(0, y, radius).turn(y=360 * (k + 0.5 * (number % 2) + level) / number)
                        yield spot.scale(size, size, size), plain("white")

        places = {
            1: [(0.0, 0.0, 1.0, 0.75 * tall)],
            2: [(-0.28, 0.0, 1.0, 0.85 * tall), (0.52, 0.22, 0.62, 0.7 * tall)],
            3: [
                (-0.1, -0.1, 1.0, 0.95 * tall),
                (0.62, 0.18, 0.66, 0.7 * tall),
                (-0.58, 0.42, 0.5, 0.62 * tall),
            ],
        }[count]
        for x, z, size, lift in places:
            for mesh, paint in one(size, lift):
                yield mesh.move(x, 0.06, z), paint
        if face and count == 1:
            yield (
                extrude(
                    [
                        (0.1, 0),
                        (0.1, 0.18),
                        *[(0.1 * np.cos(a), 0.2 + 0.1 * np.sin(a)) for a in np.linspace(0.1, np.pi - 0.1, 9)],
                        (-0.1, 0.18),
                        (-0.1, 0),
                    ],
                    0.08,
                    0.01,
                ).move(0, 0.07, 0.2),
                plain("brown"),
            )
            yield sphere(0.014, 10).move(0.06, 0.19, 0.245), plain("gold")
            yield (
                blob(0.12, 0.12, 0.06, sides=18, rows=10).move(0, 0.06 + 0.36 * tall, 0.165).turn(y=50),
                plain("yellow"),
            )
        ground = lathe(smooth([(0.85, 0), (0.8, 0.05), (0.5, 0.085), (0.0, 0.1)], 10), 40)
        wide = 0.75 if count == 1 else 1.15
        yield ground.scale(wide, 1, wide).tint(mottled((96, 150, 70), 0.4)), Paint()
        blades = []
        for k in range(26):
            a, r = 2.4 * k, wide * (0.48 + 0.3 * ((k * 0.37) % 1))
            x, z = r * np.cos(a), r * np.sin(a)
            blades.append(
                rod(
                    (x, 0.03, z),
                    (x + 0.03 * np.cos(5 * a), 0.16 + 0.08 * ((k * 0.61) % 1), z),
                    0.016,
                    0.003,
                    5,
                )
            )
        yield join(blades), plain("green")
        yield blob(0.14, 0.07, 0.1, sides=14, rows=8).move(0.5 * wide, 0.08, 0.42 * wide), plain("gray")

    return Design(caption, pieces)
