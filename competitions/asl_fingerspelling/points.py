"""The 130 of MediaPipe's 543 points that the winner of ASL fingerspelling chose, in an order of our own.

| points | part | what |
|---|---|---|
| 0-20, 21-41 | left_hand, right_hand | wrist, then four joints of thumb, index, middle, ring and little finger |
| 42-47, 48-53 | pose | left and right shoulder, elbow, wrist, and three points of the hand |
| 54-71, 72-89, 90-93 | face | left, right and middle of the lips |
| 94-95, 96, 97 | face | middle, left and right of the nose |
| 98-113, 114-129 | face | left and right eye |

Left and right are the signer's. A part is a range, and so is each side of it: point ``LEFT[i]`` mirrors ``RIGHT[i]``.
"""

LIPS_RIGHT = [61, 185, 40, 39, 37, 146, 91, 181, 84, 78, 191, 80, 81, 82, 95, 88, 178, 87]
LIPS_LEFT = [291, 409, 270, 269, 267, 375, 321, 405, 314, 308, 415, 310, 311, 312, 324, 318, 402, 317]
LIPS_MIDDLE = [0, 13, 14, 17]
NOSE = [1, 2, 327, 98]
EYE_RIGHT = [33, 7, 163, 144, 145, 153, 154, 155, 133, 246, 161, 160, 159, 158, 157, 173]
EYE_LEFT = [263, 249, 390, 373, 374, 380, 381, 382, 362, 466, 388, 387, 386, 385, 384, 398]
FACE = [*LIPS_LEFT, *LIPS_RIGHT, *LIPS_MIDDLE, *NOSE, *EYE_LEFT, *EYE_RIGHT]
POSE = [*range(11, 23, 2), *range(12, 23, 2)]

POINTS = [f"{side}_hand_{number}" for side in ("left", "right") for number in range(21)]
POINTS += [f"pose_{number}" for number in POSE] + [f"face_{number}" for number in FACE]
COLUMNS = [f"{axis}_{point}" for axis in "xyz" for point in POINTS]

LEFT = [*range(21), *range(42, 48), *range(54, 72), 96, *range(98, 114)]
RIGHT = [*range(21, 42), *range(48, 54), *range(72, 90), 97, *range(114, 130)]

# What a file has: 543 points, each axis in one block.
KINDS = {"face": 468, "left_hand": 21, "pose": 33, "right_hand": 21}
ALL_COLUMNS = [f"{axis}_{kind}_{number}" for axis in "xyz" for kind, count in KINDS.items() for number in range(count)]
