"""The 118 of MediaPipe's 543 points that the winner of ASL signs chose, in an order of our own.

| points | what |
|---|---|
| 0-20, 21-41 | left and right hand: wrist, then four joints of each finger |
| 42-59, 60-77, 78-81 | left, right and middle of the lips; 81 is below the middle of the lower lip |
| 82-83, 84, 85 | middle, left and right of the nose |
| 86-101, 102-117 | left and right eye |

Left and right are the signer's. ``LEFT[i]`` mirrors ``RIGHT[i]``. A file numbers face, left hand, pose, right hand.
"""

START = {"face": 0, "left_hand": 468, "pose": 489, "right_hand": 522}
ALL_POINTS = 543

LIPS_RIGHT = [61, 185, 40, 39, 37, 146, 91, 181, 84, 78, 191, 80, 81, 82, 95, 88, 178, 87]
LIPS_LEFT = [291, 409, 270, 269, 267, 375, 321, 405, 314, 308, 415, 310, 311, 312, 324, 318, 402, 317]
LIPS_MIDDLE = [0, 13, 14, 17]
NOSE = [1, 2, 327, 98]
EYE_RIGHT = [33, 7, 163, 144, 145, 153, 154, 155, 133, 246, 161, 160, 159, 158, 157, 173]
EYE_LEFT = [263, 249, 390, 373, 374, 380, 381, 382, 362, 466, 388, 387, 386, 385, 384, 398]

HANDS = [*range(468, 489), *range(522, 543)]
CHOSEN = [*HANDS, *LIPS_LEFT, *LIPS_RIGHT, *LIPS_MIDDLE, *NOSE, *EYE_LEFT, *EYE_RIGHT]
LEFT = [*range(21), *range(42, 60), 84, *range(86, 102)]
RIGHT = [*range(21, 42), *range(60, 78), 85, *range(102, 118)]
