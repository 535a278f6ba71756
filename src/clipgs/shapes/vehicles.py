"""Things that travel: car, bus, airplane, boat, rocket."""

import numpy as np

from clipgs.shapes.design import NUMBERS, Design, Dice, Pieces, an, words
from clipgs.shapes.geometry import Mesh, blob, box, curve, extrude, join, lathe, rings, rod, smooth, sphere, tube
from clipgs.shapes.paint import COLORS, Paint, checks, plain, planks, stripes, wood

GLASS = Paint(color=(58, 78, 98), roughness=0.3)
RUBBER = Paint(color=(38, 38, 42))
BODY = (
    "red",
    "orange",
    "yellow",
    "green",
    "teal",
    "blue",
    "light blue",
    "purple",
    "white",
    "silver",
    "black",
    "pink",
)


def wheel(radius: float, width: float) -> tuple[Mesh, Mesh]:
    """Tyre and hub about the x axis."""
    half = width / 2
    tyre = lathe(
        [
            (radius * 0.55, -half),
            (radius * 0.88, -half),
            (radius * 0.98, -half * 0.75),
            (radius, -half * 0.3),
            (radius, half * 0.3),
            (radius * 0.98, half * 0.75),
            (radius * 0.88, half),
            (radius * 0.55, half),
        ],
        32,
    )
    hub = [
        lathe(
            [
                (0, -half * 1.04),
                (radius * 0.2, -half * 1.12),
                (radius * 0.6, -half * 0.9),
                (radius * 0.62, half * 0.9),
                (radius * 0.2, half * 1.12),
                (0, half * 1.04),
            ],
            24,
        )
    ]
    for bolt in range(5):
        angle = 2 * np.pi * bolt / 5
        x, z = radius * 0.38 * np.cos(angle), radius * 0.38 * np.sin(angle)
        hub.append(rod((x, -half * 1.1, z), (x, half * 1.1, z), radius * 0.07, sides=8))
    return tyre.turn(z=90), join(hub).turn(z=90)


def arched(line: list[tuple[float, float]], axles: tuple[float, ...], radius: float, floor: float) -> np.ndarray:
    """A side view: the upper line from rear to front, closed below by a floor with an arch over each axle."""
    below: list[tuple[float, float]] = []
    start = np.arcsin((floor - radius * 0.86) / (radius * 1.22))
    for axle in sorted(axles, reverse=True):
        for angle in np.linspace(start, np.pi - start, 13):
            below.append((axle + radius * 1.22 * np.cos(angle), radius * 0.86 + radius * 1.22 * np.sin(angle)))
    return np.array(line + below)


def lengthwise(mesh: Mesh) -> Mesh:
    """A side view drawn in x (forward) and y, and extruded along z, set to run along z."""
    return mesh.turn(y=-90)


def car(dice: Dice) -> Design:
    style = dice.one("sedan", "hatchback", "pickup truck", "sports car", "taxi", "police car", "van")
    color = {"taxi": "yellow", "police car": "black"}.get(style) or dice.one(*BODY)
    rims = dice.one("silver", "black", "white", "gold")
    stripe = dice.one("white", "black", "red") if style in ("sedan", "hatchback", "sports car") else ""
    if stripe == color or dice.chance(0.4):
        stripe = ""
    rack = style in ("hatchback", "van") and dice.chance(0.4)
    load = dice.one("", "wooden crates", "orange pipes") if style == "pickup truck" else ""
    width = dice.number(1.62, 1.84)
    long = dice.number(0.95, 1.1)
    length_word = {True: "long", False: ""}[long > 1.06] or ("short" if long < 0.98 else "")
    hub = f"{rims} wheels" if rims != "black" else "black wheels"
    trim = f"{stripe} racing stripes" if stripe else hub
    if rack:
        trim = "luggage on the roof rack"
    if load:
        trim = f"{load} in the bed"
    match style:
        case "taxi":
            caption = dice.one(
                f"a yellow taxi with a checkered band and {hub}",
                f"{an(words(length_word, 'yellow'))} taxi cab with a roof sign",
            )
        case "police car":
            caption = dice.one(
                "a black and white police car with a light bar on the roof",
                f"{an(words(length_word, 'police car'))} with red and blue lights and {hub}",
            )
        case _:
            caption = dice.one(
                f"{an(words(length_word, color, style))} with {trim}",
                f"{an(words(color, style))} with dark windows and {trim}",
            )

    def pieces() -> Pieces:
        paint = plain(color, 0.4)
        radius = {"sports car": 0.34, "pickup truck": 0.4, "van": 0.36}.get(style, 0.34)
        floor = 0.26
        # Upper lines of the body (below the windows) and of the cabin: (forward, up) from rear to front.
        rear, front = -2.1 * long, 2.1 * long
        deck = {"sports car": 0.74, "pickup truck": 0.95, "van": 0.98}.get(style, 0.86)
        hood = {"sports car": 0.66, "pickup truck": 0.96, "van": 0.95}.get(style, 0.82)
        cabin = {
            "sedan": [(-1.25, deck), (-0.72, 1.38), (0.3, 1.42), (1.0, 0.86)],
            "hatchback": [(-1.95, deck), (-1.62, 1.44), (0.2, 1.48), (0.98, 0.86)],
            "pickup truck": [(-0.35, deck), (-0.25, 1.6), (0.55, 1.62), (1.1, 0.95)],
            "sports car": [(-1.5, deck), (-0.55, 1.14), (0.15, 1.16), (0.95, 0.72)],
            "van": [(-2.05, deck), (-1.98, 1.92), (0.9, 1.94), (1.55, 0.96)],
        }.get(style, [(-1.3, deck), (-0.75, 1.4), (0.3, 1.44), (1.0, 0.86)])
        cabin = [(z * long, y) for z, y in cabin]
        base = cabin[-1][0]
        upper = [
            (rear + 0.05, floor),
            (rear, 0.45),
            (rear + 0.02, deck - 0.08),
            (rear + 0.1, deck),
            (cabin[0][0], deck + 0.01),
            (base - 0.1, deck + 0.01),
            (base, hood + 0.05),
            ((base + front) / 2, hood),
            (front - 0.22, hood - 0.07),
            (front - 0.03, hood - 0.2),
            (front, 0.45),
            (front - 0.05, floor),
        ]
        axles = (-1.3 * long, 1.32 * long)

        def taper(points: np.ndarray) -> np.ndarray:  # narrower upward and at both ends
            points[:, 0] *= 1 - 0.1 * np.clip((points[:, 1] - 0.5) / 0.5, 0, 1) ** 2
            points[:, 0] *= 1 - 0.1 * np.abs(points[:, 2] / front) ** 4
            return points

        hull = lengthwise(extrude(arched(upper, axles, radius, floor), width, 0.06)).warp(taper)
        yield hull, plain("white", 0.4) if style == "police car" else paint
        if style == "police car":
            for z0, z1 in ((rear, cabin[0][0]), (base - 0.05, front - 0.1)):
                lid = box(width * 0.86, 0.03, z1 - z0 - 0.1, 0.01).turn(x=1.5 if z1 > 0 else 0)
                yield lid.move(0, (hood if z1 > 0 else deck) + 0.005, (z0 + z1) / 2 + 0.03), paint
        # The cabin: glass all round under a roof, with pillars between the windows.
        low, high = 0.9 * width, 0.74 * width if style != "van" else 0.84 * width
        roof_y = max(y for _, y in cabin)

        def lean(points: np.ndarray) -> np.ndarray:
            amount = np.clip((points[:, 1] - deck) / (roof_y - deck), 0, 1)
            points[:, 0] *= 1 + (high / low - 1) * amount
            return points

        yield lengthwise(extrude([(z, y - 0.05) for z, y in cabin], low, 0.03)).warp(lean), GLASS
        roof = [
            (cabin[1][0] - 0.06, cabin[1][1] - 0.09),
            (cabin[1][0] - 0.02, cabin[1][1]),
            (cabin[2][0] - 0.02, cabin[2][1]),
            (cabin[2][0] + 0.08, cabin[2][1] - 0.09),
        ]
        yield (
            lengthwise(extrude(roof, low * 1.015, 0.02)).warp(lean),
            plain("white") if style == "police car" else paint,
        )
        pillar = 0.045
        frame = [(cabin[0], cabin[1]), (cabin[2], cabin[3])]
        posts = np.linspace(cabin[1][0], cabin[2][0], 3 if style != "pickup truck" else 2)[1:-1]
        frame += [((z, deck), (z, roof_y)) for z in posts]
        if style == "van":  # closed sides behind the driver
            panel = [
                (cabin[0][0] - 0.01, deck),
                (cabin[1][0] - 0.01, roof_y - 0.02),
                (-0.2, roof_y - 0.02),
                (-0.2, deck),
            ]
            yield lengthwise(extrude(panel, low * 1.012, 0.01)).warp(lean), paint
        for (z0, y0), (z1, y1) in frame:
            for side in (-1, 1):
                top = side * (low + (high - low) * np.clip((y1 - 0.03 - deck) / (roof_y - deck), 0, 1)) / 2
                yield (
                    rod((side * low / 2 * 0.985, y0 - 0.04, z0), (top * 0.985, y1 - 0.05, z1), pillar, sides=8),
                    (plain("white") if style == "police car" else paint),
                )
        tyre, hub = wheel(radius, 0.22)
        for z in axles:
            for side in (-1, 1):
                yield tyre.move(side * (width / 2 - 0.13), radius, z), RUBBER
                yield (
                    hub.move(side * (width / 2 - 0.13), radius, z),
                    plain(rims if rims != "black" else "dark gray", 0.4),
                )
        yield (
            box(width * 0.8, 0.3, (axles[1] - axles[0]) + 0.9, 0.03).move(0, 0.42, (axles[0] + axles[1]) / 2),
            RUBBER,
        )
        lamp_y = min(hood, deck) - 0.2
        for side in (-1, 1):
            yield (
                blob(0.3, 0.15, 0.1, 0.6, 16, 10).move(side * width * 0.33, lamp_y, front - 0.025),
                plain("cream", 0.3),
            )
            yield (
                blob(0.26, 0.14, 0.08, 0.5, 16, 10).move(side * width * 0.33, deck - 0.2, rear + 0.01),
                plain("red"),
            )
            mirror_z = base - 0.28
            yield (
                blob(0.16, 0.11, 0.1, 0.6, 14, 8).move(side * (width * 0.5 + 0.03), deck + 0.08, mirror_z),
                paint,
            )
            for z in (posts[0] - 0.5 if len(posts) else 0.1, (posts[0] if len(posts) else 0.3) + 0.36):
                yield (
                    box(0.03, 0.03, 0.16, 0.01).move(side * (width * 0.485), deck - 0.13, z),
                    plain("silver", 0.4),
                )
        yield box(width * 0.5, 0.12, 0.06, 0.02).move(0, lamp_y - 0.04, front - 0.01), RUBBER
        for z, sign in ((front, 1), (rear, -1)):
            yield box(width * 0.88, 0.12, 0.12, 0.04).move(0, 0.36, z - sign * 0.02), plain("dark gray")
            yield (
                box(0.42, 0.11, 0.02, 0.006).move(0, 0.46 if sign > 0 else 0.5, z + sign * 0.015),
                plain("white"),
            )
        if stripe:
            for side in (-1, 1):
                x = side * 0.14
                tone = plain(stripe, 0.4)
                yield (
                    box(0.16, 0.03, cabin[2][0] - cabin[1][0], 0.008).move(
                        x, roof_y - 0.001, (cabin[2][0] + cabin[1][0]) / 2 - 0.02
                    ),
                    tone,
                )
                path = [(z, y + 0.012) for z, y in upper[6:9]]
                under = [(z, y - 0.02) for z, y in reversed(path)]
                yield lengthwise(extrude(path + under, 0.16)).move(x=x), tone
                if style == "sedan":
                    yield (
                        box(0.16, 0.03, cabin[0][0] - rear - 0.12, 0.008).move(
                            x, deck + 0.005, (cabin[0][0] + rear) / 2 + 0.03
                        ),
                        tone,
                    )
        if style == "taxi":
            sign_mesh = box(0.5, 0.17, 0.2, 0.04).move(0, roof_y + 0.08, -0.2)
            yield sign_mesh, plain("white")
            for side in (-1, 1):
                band = box(0.015, 0.14, axles[1] - axles[0] - 2.6 * radius, 0.004).move(
                    side * width * 0.487, deck - 0.28
                )
                yield band.project(0.14, "y"), checks(COLORS["black"], COLORS["white"])
        if style == "police car":
            for side, light in ((-1, "red"), (1, "blue")):
                yield box(0.5, 0.13, 0.22, 0.05).move(side * 0.27, roof_y + 0.06, -0.2), plain(light, 0.3)
        if style == "sports car":
            yield box(width * 0.85, 0.035, 0.3, 0.012).move(0, deck + 0.24, rear + 0.22), paint
            for side in (-1, 1):
                yield box(0.05, 0.24, 0.16, 0.012).move(side * width * 0.3, deck + 0.12, rear + 0.24), paint
        if rack:
            for z in (-0.9, -0.1):
                yield rod((-0.55, roof_y + 0.05, z), (0.55, roof_y + 0.05, z), 0.025), RUBBER
            yield box(0.62, 0.26, 0.9, 0.05).move(-0.14, roof_y + 0.2, -0.5), plain("brown")
            yield box(0.34, 0.34, 0.6, 0.05).move(0.38, roof_y + 0.24, -0.55), plain("teal")
        if style == "pickup truck":
            middle = (rear + cabin[0][0]) / 2
            size = cabin[0][0] - rear - 0.24
            yield (
                box(width * 0.72, 0.02, size, 0.005).move(0, deck + 0.012, middle),
                Paint(color=(48, 48, 52)),
            )
            for side in (-1, 1):
                yield box(0.09, 0.14, size + 0.16, 0.03).move(side * width * 0.41, deck + 0.06, middle), paint
            yield box(width * 0.82, 0.14, 0.09, 0.03).move(0, deck + 0.06, rear + 0.1), paint
            if load == "wooden crates":
                for x, z, tall in ((-0.3, 0.2, 0.42), (0.34, 0.24, 0.34), (0.05, -0.4, 0.46)):
                    yield (
                        box(0.5, tall, 0.46, 0.015).move(x, deck + tall / 2 + 0.02, middle + z).project(0.4, "x"),
                        planks("pine", 4),
                    )
            elif load:
                for x in (-0.36, -0.12, 0.12, 0.36):
                    yield (
                        rod(
                            (x, deck + 0.14, middle - size * 0.47),
                            (x, deck + 0.14, middle + size * 0.47),
                            0.11,
                            sides=18,
                        ),
                        plain("orange"),
                    )

    return Design(caption, pieces)


def bus(dice: Dice) -> Design:
    style = dice.one("school", "city", "double", "city")
    color, band = dice.two("red", "orange", "green", "teal", "blue", "light blue", "purple", "white")
    windows = dice.count(4, 7)
    color = {"school": "yellow"}.get(style, color)
    band = {"school": "black"}.get(style, band)
    rims = dice.one("silver", "black", "white")
    match style:
        case "school":
            caption = dice.one(
                "a yellow school bus with black stripes",
                f"a yellow school bus with {NUMBERS[windows]} windows on each side and {rims} wheels",
            )
        case "double":
            caption = dice.one(
                f"{an(color)} double-decker bus with {an(band)} stripe",
                f"{an(color)} two-story bus with {NUMBERS[windows]} windows on each floor",
            )
        case _:
            caption = dice.one(
                f"{an(color)} city bus with {an(band)} stripe",
                f"{an(color)} bus with {NUMBERS[windows]} side windows and {an(band)} stripe",
                f"a long {color} bus with {an(band)} stripe and {rims} wheels",
            )

    def pieces() -> Pieces:
        paint, stripe = plain(color, 0.5), plain(band)
        width, pitch = 2.1, 0.92
        length = windows * pitch + 1.5
        nose = 1.1 if style == "school" else 0.0
        height = 4.0 if style == "double" else 2.65
        floor, radius = 0.4, 0.47
        rear, front = -length / 2, length / 2
        line = [
            (rear, floor),
            (rear, height - 0.1),
            (rear + 0.1, height),
            (front - 0.12, height),
            (front, height - 0.2),
            (front + (0.12 if not nose else 0), 1.5),
        ]
        if nose:
            line += [(front + 0.05, 1.45), (front + nose * 0.8, 1.35), (front + nose, 1.15)]
        line += [(front + nose + (0.12 if not nose else 0.02), floor)]
        axles = (rear + 1.15, front + (nose * 0.45 if nose else -1.0))
        yield lengthwise(extrude(arched(line, axles, radius, floor), width, 0.09)), paint
        tyre, hub = wheel(radius, 0.3)
        for z in axles:
            for side in (-1, 1):
                yield tyre.move(side * (width / 2 - 0.16), radius, z), RUBBER
                yield (
                    hub.move(side * (width / 2 - 0.16), radius, z),
                    plain(rims if rims != "black" else "dark gray"),
                )
        yield box(width * 0.75, 0.5, length - 0.4, 0.03).move(0, 0.55, 0), RUBBER
        decks = (1.55, 2.85) if style == "double" else (1.55,)
        for y in decks:
            for at in range(windows):
                z = rear + 0.55 + pitch * (at + 0.5)
                for side in (-1, 1):
                    yield box(0.05, 0.72, pitch * 0.84, 0.02).move(side * width / 2, y + 0.25, z), GLASS
            yield box(width * 0.84, 0.75, 0.06, 0.025).move(0, y + 0.25, rear), GLASS
            # The front leans back above the lamps where there is no nose.
            lean = 0.0 if nose else 0.12 / (height - 1.7)
            screen = box(width * 0.86, 0.85, 0.06, 0.025).turn(x=-np.degrees(np.arctan(lean)))
            yield screen.move(0, y + 0.25, front + lean * (height - 0.45 - y)), GLASS
        for y in (1.08,) if style != "double" else (1.08, 2.5):
            for side in (-1, 1):
                yield box(0.05, 0.14, length - 0.5, 0.02).move(side * width / 2, y + 0.02, 0), stripe
        door_z = front - 0.5
        if style != "school":
            yield box(0.06, 1.5, 0.72, 0.02).move(-width / 2, 1.25, door_z + 0.02), Paint(color=(70, 92, 112))
            yield box(0.07, 1.5, 0.04, 0.01).move(-width / 2, 1.25, door_z + 0.02), stripe
        end = front + nose + (0.1 if not nose else 0.02)
        for side in (-1, 1):
            yield blob(0.3, 0.26, 0.12, 0.8, 18, 10).move(side * width * 0.36, 0.85, end), plain("cream", 0.3)
            yield blob(0.2, 0.26, 0.08, 0.6, 14, 8).move(side * width * 0.4, 0.95, rear), plain("red")
            mirror = front + (0.35 if nose else 0.2)
            yield (
                rod(
                    (side * width * 0.48, 2.05, front - 0.05),
                    (side * (width * 0.5 + 0.16), 1.95, mirror),
                    0.025,
                ),
                RUBBER,
            )
            yield blob(0.1, 0.4, 0.16, 0.6, 12, 8).move(side * (width * 0.5 + 0.18), 1.8, mirror), RUBBER
        if nose:
            yield box(width * 0.5, 0.34, 0.06, 0.02).move(0, 0.92, end), RUBBER
        yield box(width * 0.96, 0.2, 0.16, 0.05).move(0, 0.5, end + 0.02), plain("dark gray")
        yield box(width * 0.96, 0.2, 0.14, 0.05).move(0, 0.5, rear), plain("dark gray")
        sign_y = height - 0.22
        yield (
            box(width * 0.6, 0.24, 0.08, 0.02).move(0, sign_y if style != "double" else 2.48, front + 0.02),
            (Paint(color=(30, 30, 34))),
        )
        yield (
            box(width * 0.45, 0.09, 0.09, 0.01).move(0, sign_y if style != "double" else 2.48, front + 0.025),
            (plain("orange")),
        )
        if style == "school":
            for side in (-1, 1):
                yield sphere(0.09, 14).move(side * width * 0.38, height - 0.14, front), plain("red")
                yield sphere(0.09, 14).move(side * width * 0.38, height - 0.16, rear), plain("red")

    return Design(caption, pieces)


def wing(span: float, root: float, tip: float, sweep: float, thick: float, rise: float = 0.0) -> Mesh:
    """A wing from x = 0 to x = span: chords at root and tip, the leading edge swept back (toward -z)."""
    x, y = np.concatenate([[1.0], 1 - np.linspace(0, 1, 9)[1:-1], [0.0]]), np.zeros(9)
    y = 2.6 * (np.sqrt(x) - x) * x**0.2 * 0.5
    section = np.concatenate([np.stack([x, y], 1), np.stack([x, -0.5 * y], 1)[-2:0:-1]])
    layers = []
    for t in np.linspace(0, 1, 6):
        shrink = 1.0 if t < 0.95 else 0.8
        chord = (root + (tip - root) * t) * shrink
        layers.append(
            np.stack(
                [
                    np.full(len(section), span * t),
                    rise * t + section[:, 1] * thick * (1 - 0.5 * t),
                    -sweep * t - section[:, 0] * chord,
                ],
                axis=1,
            )
        )
    return rings(np.stack(layers))


def airplane(dice: Dice) -> Design:
    style = dice.one("jet", "propeller", "jet", "biplane")
    color, accent = dice.two("red", "orange", "yellow", "green", "teal", "blue", "light blue", "purple", "navy blue")
    body = dice.one("white", "silver", "white", "light gray") if style == "jet" else color
    engines = dice.one(2, 4) if style == "jet" else 1
    span = dice.number(0.9, 1.12)
    wide = "long" if span > 1.06 else "short" if span < 0.95 else ""
    match style:
        case "jet":
            caption = dice.one(
                f"{an(body)} passenger jet with {an(color)} tail and {NUMBERS[engines]} engines",
                f"{an(body)} airplane with {wide + ' ' if wide else ''}{accent} wings and {an(color)} tail",
                f"an airliner in {body} with {an(color)} tail and {accent} wings",
            )
        case "propeller":
            caption = dice.one(
                f"{an(color)} propeller plane with {words(wide, accent)} wings",
                f"a small {color} airplane with a propeller and {words(wide, accent)} wings",
            )
        case _:
            caption = dice.one(
                f"{an(color)} biplane with {accent} wings",
                f"an old-fashioned {color} biplane with two pairs of {words(wide, accent)} wings",
            )

    def pieces() -> Pieces:
        hull, trim, edge = plain(body, 0.4), plain(color, 0.4), plain(accent, 0.4)
        if style == "jet":
            profile = smooth(
                [
                    (0, -2.2),
                    (0.08, -2.1),
                    (0.2, -1.5),
                    (0.29, -0.8),
                    (0.3, 0.6),
                    (0.29, 1.4),
                    (0.2, 1.85),
                    (0.09, 2.05),
                    (0, 2.1),
                ],
                40,
            )

            def upswept(points: np.ndarray) -> np.ndarray:  # the tail's underside rises
                points[:, 1] += 0.2 * np.clip((-points[:, 2] - 0.8) / 1.4, 0, 1) ** 1.5
                return points

            yield lathe(profile, 32).turn(x=90).warp(upswept), hull
            for z in np.linspace(-1.05, 1.15, 12):
                for side in (-1, 1):
                    yield blob(0.02, 0.1, 0.085, 0.8, 12, 8).move(side * 0.288, 0.09, z), GLASS
            for side in (-1, 1):
                yield box(0.012, 0.05, 2.3, 0.005).move(side * 0.3, -0.03, 0.05), trim
            yield blob(0.36, 0.15, 0.22, 0.7, 20, 12).turn(x=28).move(0, 0.135, 1.72), GLASS
            main = wing(1.95 * span, 0.85, 0.28, 0.85, 0.16, 0.22).move(0.1, -0.12, 0.55)
            tail = wing(0.72, 0.42, 0.2, 0.36, 0.1, 0.06).move(0.05, 0.26, -1.6)
            for mesh, tone in ((main, edge), (tail, trim)):
                yield mesh, tone
                yield mesh.mirror(), tone
            yield wing(0.72, 0.62, 0.3, 0.5, 0.12).turn(z=90).move(0, 0.27, -1.36), trim
            spots = (0.62, 1.15) if engines == 4 else (0.72,)
            for x in spots:
                z = 0.42 - 0.42 * x
                for side in (-1, 1):
                    yield box(0.03, 0.22, 0.3, 0.01).move(side * x * span, -0.13 + 0.08 * x, z - 0.02), hull
                    pod = [
                        (0.07, -0.32),
                        (0.125, -0.05),
                        (0.14, 0.16),
                        (0.13, 0.25),
                        (0.112, 0.25),
                        (0.1, 0.14),
                        (0, 0.12),
                    ]
                    yield lathe(pod, 24).turn(x=90).move(side * x * span, -0.24 + 0.05 * x, z), hull
                    yield (
                        lathe([(0.128, 0.24), (0.131, 0.26), (0.118, 0.262), (0.11, 0.25)], 24, loop=True)
                        .turn(x=90)
                        .move(side * x * span, -0.24 + 0.05 * x, z),
                        trim,
                    )
                    yield (
                        lathe([(0, 0.115), (0.1, 0.13), (0.03, 0.15), (0, 0.2)], 20)
                        .turn(x=90)
                        .move(side * x * span, -0.24 + 0.05 * x, z),
                        RUBBER,
                    )
            return
        nose = 0.86
        profile = smooth(
            [(0, -1.35), (0.05, -1.3), (0.13, -0.8), (0.21, -0.1), (0.23, 0.4), (0.2, 0.74), (0.13, nose)], 34
        )
        yield lathe([*profile, (0, nose)], 28).turn(x=90).scale(x=0.92), hull
        spinner = lathe(smooth([(0.09, nose - 0.02), (0.075, nose + 0.07), (0.0, nose + 0.17)], 12), 20).turn(x=90)
        yield spinner, edge
        for blade in range(3 if style == "propeller" else 2):
            angle = 120 * blade + 20 if style == "propeller" else 180 * blade + 30
            paddle = blob(0.1, 0.52, 0.025, 0.8, 14, 10).turn(y=24).move(y=0.3).turn(z=angle)
            yield paddle.move(z=nose + 0.06), Paint(color=(70, 50, 36))
        levels = (-0.16, 0.42) if style == "biplane" else (-0.06,)
        for y in levels:
            half = wing(
                1.35 * span,
                0.48,
                0.34 if style == "propeller" else 0.44,
                0.06,
                0.13,
                0.1 if style == "propeller" else 0.04,
            ).move(0.0, y, 0.55)
            yield half, edge
            yield half.mirror(), edge
        tail = wing(0.5, 0.3, 0.2, 0.08, 0.08).move(0.0, 0.06, -1.02)
        yield tail, edge
        yield tail.mirror(), edge
        yield wing(0.42, 0.36, 0.2, 0.16, 0.08).turn(z=90).move(0, 0.04, -0.98), edge
        if style == "biplane":
            for side in (-1, 1):
                for x in (0.2, 0.95 * span):
                    for z in (0.46, 0.2):
                        yield (
                            rod(
                                (side * x, -0.14 + 0.02 * x, z),
                                (side * x, 0.43 + 0.02 * x, z),
                                0.014,
                                sides=8,
                            ),
                            (wood("oak")),
                        )
            yield blob(0.2, 0.1, 0.34, sides=20, rows=10).move(0, 0.2, -0.05), Paint(color=(60, 42, 30))
            yield sphere(0.085, 18).move(0, 0.3, -0.09), plain("brown")
        else:
            yield blob(0.27, 0.3, 0.72, 0.85, 24, 14).move(0, 0.19, 0.12), GLASS
        for side in (-1, 1):
            tyre, hub = wheel(0.12, 0.08)
            yield (
                rod((side * 0.1, -0.14, 0.42), (side * 0.26, -0.36, 0.46), 0.02, sides=8),
                plain("dark gray"),
            )
            yield tyre.move(side * 0.28, -0.37, 0.46), RUBBER
            yield hub.move(side * 0.28, -0.37, 0.46), trim
        tyre, _ = wheel(0.06, 0.04)
        yield tyre.move(0, -0.12, -1.22), RUBBER
        yield rod((0, -0.1, -1.22), (0, 0.0, -1.15), 0.014, sides=8), plain("dark gray")

    return Design(caption, pieces)


def hull(length: float, beam: float, depth: float, sheer: float) -> Mesh:
    """A boat's body, decked over at y = 0 (higher by `sheer` at the bow), the bow toward +z."""
    layers = []
    for t in np.linspace(0, 1, 17):
        half = beam / 2 * (0.72 + 0.28 * np.sin(np.pi * min(t / 0.9, 1) ** 0.9)) * (1 - t**5) ** 0.5
        half = max(half * (1 - 0.55 * max(t - 0.55, 0) ** 1.2 * 2), 0.004)
        low = depth * (1 - 0.5 * t**4)
        z = length * (t - 0.5)
        rise = sheer * t**2.2
        around = np.linspace(0, np.pi, 13)
        x, y = half * np.cos(around) * np.abs(np.cos(around)) ** -0.45, -low * np.sin(around) ** 0.75
        x[6] = 0.0
        overhang = 0.07 * length * (y / depth) * t**3
        layers.append(np.stack([x, y + rise * (1 + y / depth), z + overhang], axis=1))
    return rings(np.stack(layers))


def boat(dice: Dice) -> Design:
    style = dice.one("sailboat", "sailboat", "fishing boat", "tugboat")
    color, other = dice.two(
        "red", "orange", "yellow", "green", "teal", "blue", "light blue", "navy blue", "white", "brown"
    )
    sail = dice.one("white", "cream", "red", "orange", "light blue", "yellow")
    striped = dice.chance(0.5)
    flag = dice.one("red", "yellow", "blue", "green")
    tall = dice.number(0.9, 1.15)
    height = "tall " if tall > 1.07 else ""
    stripe_color = "white" if sail not in ("white", "cream") else dice.one("red", "blue", "teal")
    match style:
        case "sailboat":
            sails = f"{sail} and {stripe_color} striped sails" if striped else f"{sail} sails"
            caption = dice.one(
                f"{an(color)} sailboat with {height}{sails} and {an(flag)} flag",
                f"a small {color} sailing boat with two {sails}",
            )
        case "fishing boat":
            caption = dice.one(
                f"{an(color)} fishing boat with {an(other)} cabin and {an(flag)} flag",
                f"a wooden-decked fishing boat in {color} with {an(other)} cabin",
            )
        case _:
            caption = dice.one(
                f"{an(color)} tugboat with {an(other)} funnel",
                f"a stout {color} tugboat with a white cabin, {an(other)} funnel and {an(flag)} flag",
            )

    def pieces() -> Pieces:
        length = 1.9
        half_sheet = np.array([0.005, 0, 0])  # cloth is a centimetre thick, so that it has two sides
        beam, depth, sheer = (0.62, 0.3, 0.14) if style == "sailboat" else (0.78, 0.4, 0.26)
        body = hull(length, beam, depth, sheer)
        yield body, plain(color, 0.5)

        def deck(points: np.ndarray) -> np.ndarray:  # follows the sheer, a little over the hull's rim
            points[:, 1] += 0.012 + sheer * np.clip(points[:, 2] / length + 0.5, 0, 1) ** 2.2
            return points

        yield (
            body.scale(0.93, 0.05, 0.95).warp(deck).project(0.4, "x"),
            planks("pine", 6),
        )
        outline = body.points[: 17 * 13].reshape(17, 13, 3)
        for side in (0, 12):
            yield tube(outline[:, side] + [0, 0.012, 0], 0.022, 8), wood("walnut")
        yield tube([outline[0, 0] + [0, 0.012, 0], outline[0, 12] + [0, 0.012, 0]], 0.022, 8), wood("walnut")
        pole = wood("oak")
        if style == "sailboat":
            top = 2.1 * tall
            mast_z = 0.18
            yield rod((0, 0, mast_z), (0, top + 0.1, mast_z), 0.03, 0.016), pole
            yield rod((0, 0.3, mast_z), (0, 0.27, -0.85), 0.02), pole

            def cloth(corners: list[tuple[float, float]], belly: float) -> Mesh:
                """A triangle of cloth (z, y), a centimetre thick, filled by the wind toward +x."""
                a, b, c = (np.array([0.0, y, z]) for z, y in corners)
                rows = []
                for t in np.linspace(0, 0.985, 11):
                    low, high = a + (c - a) * t, b + (c - b) * t
                    s = np.linspace(0, 1, 11)[:, None]
                    line = low + (high - low) * s
                    line[:, :1] += belly * np.sin(np.pi * s) * np.sin(np.pi * min(t + 0.12, 1)) * (1 - 0.4 * t)
                    rows.append(np.concatenate([line + half_sheet, (line - half_sheet)[::-1]]))
                return rings(np.stack(rows)).project(0.5, "y")

            canvas = stripes(COLORS[sail], COLORS[stripe_color], upright=False) if striped else plain(sail)
            yield cloth([(mast_z - 0.03, 0.34), (-0.83, 0.31), (mast_z - 0.03, top)], 0.14), canvas
            yield cloth([(0.92, sheer + 0.06), (mast_z + 0.1, 0.3), (mast_z + 0.04, top * 0.86)], 0.1), canvas
            yield rod((0, sheer, 0.93), (0, top * 0.88, mast_z), 0.005, sides=6), plain("dark gray")
            yield box(0.34, 0.14, 0.5, 0.05).move(0, 0.08, -0.12), plain("white")
            yield rod((0, 0.0, -0.86), (0, 0.16, -0.9), 0.02), pole
            yield box(0.02, 0.34, 0.14, 0.01).move(0, -0.2, -length / 2 - 0.03), pole
            peak, flag_z = top + 0.1, mast_z
        elif style == "fishing boat":
            yield box(0.42, 0.4, 0.46, 0.04).move(0, 0.24, 0.22), plain(other)
            yield (
                box(0.5, 0.04, 0.56, 0.015).move(0, 0.46, 0.23),
                plain("white" if other != "white" else "red"),
            )
            yield box(0.34, 0.14, 0.03, 0.01).move(0, 0.32, 0.445), GLASS
            for side in (-1, 1):
                yield box(0.03, 0.14, 0.3, 0.01).move(side * 0.21, 0.32, 0.22), GLASS
                yield rod((side * 0.06, 0.05, -0.2), (side * 0.5, 1.0, -0.45), 0.013, 0.008), pole
                ring = [
                    (side * 0.385, -0.02 + 0.08 * np.cos(a), -0.2 + 0.08 * np.sin(a))
                    for a in np.linspace(0, 2 * np.pi, 25)
                ]
                yield tube(ring, 0.025, 10), plain("orange")
            yield rod((0, 0.4, 0.1), (0, 1.05, 0.1), 0.022, 0.014), pole
            for x, z in ((-0.14, -0.55), (0.14, -0.62)):
                yield box(0.24, 0.18, 0.24, 0.02).move(x, 0.1, z).project(0.2, "x"), planks("oak", 3)
            peak, flag_z = 1.05, 0.1
        else:
            yield box(0.5, 0.34, 0.7, 0.05).move(0, 0.2, 0.05), plain("white")
            yield box(0.4, 0.28, 0.36, 0.04).move(0, 0.5, 0.16), plain("white")
            yield box(0.46, 0.04, 0.44, 0.015).move(0, 0.66, 0.16), plain(other)
            yield box(0.34, 0.12, 0.03, 0.01).move(0, 0.53, 0.335), GLASS
            for side in (-1, 1):
                yield box(0.03, 0.12, 0.26, 0.01).move(side * 0.2, 0.53, 0.16), GLASS
                for z in (-0.18, 0.02, 0.22):
                    yield rod((side * 0.235, 0.22, z), (side * 0.26, 0.22, z), 0.055, sides=18), GLASS
            stack = lathe([(0.1, 0.3), (0.085, 0.82), (0.095, 0.82), (0.095, 0.86), (0.06, 0.86), (0.06, 0.8)], 24)
            yield stack.move(z=-0.2), plain(other)
            yield (
                lathe([(0.1, 0.66), (0.105, 0.66), (0.102, 0.74), (0.085, 0.74)], 24).move(z=-0.2),
                plain("black" if other != "black" else "white"),
            )
            for z in (-0.75, -0.5, -0.25, 0.0, 0.25):
                side_x = float(np.interp(z, outline[:, 0, 2], np.abs(outline[:, 0, 0])))
                for side in (-1, 1):
                    ring = [
                        (side * (side_x + 0.015), -0.08 + 0.07 * np.cos(a), z + 0.07 * np.sin(a))
                        for a in np.linspace(0, 2 * np.pi, 21)
                    ]
                    yield tube(ring, 0.03, 8), RUBBER
            yield rod((0, 0.6, 0.1), (0, 1.1, 0.1), 0.016), pole
            peak, flag_z = 1.1, 0.1
        ripple = np.linspace(0, 1, 9)
        rows = [
            np.stack([0.03 * np.sin(ripple * 5), np.full(9, peak - y), flag_z - 0.3 * ripple], 1) for y in (0.0, 0.16)
        ]
        yield (
            rings(np.stack([np.concatenate([r + half_sheet, (r - half_sheet)[::-1]]) for r in rows])),
            plain(flag),
        )

    return Design(caption, pieces)


def rocket(dice: Dice) -> Design:
    body, fin = dice.two("white", "silver", "red", "orange", "yellow", "teal", "blue", "light blue", "purple")
    nose = fin if dice.chance(0.6) else dice.one("red", "orange", "black", "gold")
    fins = dice.count(3, 4)
    windows = dice.count(1, 3)
    pattern = dice.one("", "striped", "checked", "")
    plump = dice.number(0.85, 1.25)
    form = "slender" if plump < 0.93 else "plump" if plump > 1.16 else ""
    flame = dice.chance(0.5)
    portholes = f"{NUMBERS[windows]} round {'window' if windows == 1 else 'windows'}"
    fire = " and flames below" if flame else ""
    band = f" with {an(pattern)} band" if pattern else ""
    tip = f" with {an(nose)} tip"
    caption = dice.one(
        f"{an(words(form, body))} rocket with {NUMBERS[fins]} {fin} fins{fire}",
        f"{an(words(form, body, 'toy rocket'))} with {an(nose)} nose, {fin} fins and {portholes}",
        f"{an(words(form, body, 'space rocket'))}{band or tip}{fire or f' and {portholes}'}",
    )

    def pieces() -> Pieces:
        skin, tail = plain(body, 0.4), plain(fin, 0.4)
        radius = 0.26 * plump
        shape = np.array(
            smooth(
                [(0.62, 0.0), (0.85, 0.25), (1.0, 0.75), (0.96, 1.2), (0.74, 1.55), (0.4, 1.8), (0.0, 1.95)],
                48,
            )
        )

        def at(y: float) -> float:
            return float(np.interp(y, shape[:, 1], shape[:, 0])) * radius

        cut = 1.5
        lower = [(r * radius, y) for r, y in shape if y < cut] + [(at(cut), cut), (0, cut)]
        yield lathe(lower, 40), skin
        upper = [
            (0, cut - 0.01),
            (at(cut) + 0.004, cut - 0.01),
            *[(r * radius + 0.004, y) for r, y in shape if y > cut],
        ]
        yield lathe(upper, 40), plain(nose, 0.4)
        yield sphere(0.03, 14).move(y=1.95), plain(nose, 0.4)
        for y in (0.12, cut - 0.03):
            yield (
                lathe(
                    [
                        (at(y) - 0.01, y - 0.025),
                        (at(y) + 0.012, y - 0.02),
                        (at(y) + 0.012, y + 0.02),
                        (at(y) - 0.01, y + 0.025),
                    ],
                    40,
                ),
                tail,
            )
        if pattern:
            ys = np.linspace(0.36, 0.66, 6)
            line = [(at(y) + 0.006, y) for y in ys]
            strip = lathe([(at(0.36) - 0.01, 0.36), *line, (at(0.66) - 0.01, 0.66)], 40)
            other = COLORS["white"] if body != "white" else COLORS["light gray"]
            yield strip.tile(12, 2), (stripes if pattern == "striped" else checks)(COLORS[fin], other)
        for window in range(windows):
            y = 1.2 - 0.25 * window
            r, out = 0.085 - 0.01 * window, at(y)
            ring = [
                (
                    r * np.cos(a),
                    y + r * np.sin(a),
                    out * np.sqrt(1 - min((r * np.cos(a) / out) ** 2, 0.9)) + 0.006,
                )
                for a in np.linspace(0, 2 * np.pi, 33)
            ]
            yield tube(ring, 0.02, 10), plain("gold" if fin != "yellow" else "gray", 0.4)
            yield (
                blob(2 * r, 2 * r, 0.1, sides=24, rows=12).move(0, y, out - 0.022),
                Paint(color=(96, 176, 220), roughness=0.3),
            )
        blade = curve([(0.16, 0.62), (0.34, 0.42), (0.46, 0.1), (0.47, -0.22)], 12)
        inner = curve([(0.38, -0.14), (0.27, 0.0), (0.12, 0.06)], 8)
        outline = np.concatenate([blade, inner]) + np.array([radius - 0.25, 0])
        vane = extrude(outline, 0.06, 0.02)
        for number in range(fins):
            yield vane.turn(y=360 * number / fins + (90 if fins == 3 else 45)), tail
        yield (
            lathe(
                [(0.0, 0.05), (0.1 * plump, 0.05), (0.16 * plump, -0.12), (0.13 * plump, -0.12), (0, -0.02)],
                32,
            ),
            (plain("dark gray")),
        )
        if flame:
            for size, tone, drop in ((1.0, (240, 120, 30), 0.52), (0.6, (255, 214, 70), 0.4)):
                tongue = smooth([(0.1 * size, -0.08), (0.16 * size, -0.2), (0.1 * size, -0.36), (0.0, -drop)], 16)
                yield (
                    lathe([(0, -0.06), *tongue], 24),
                    Paint(color=tone),
                )

    return Design(caption, pieces)
