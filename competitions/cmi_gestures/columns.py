"""The columns of the CMI sensor files, and what their behaviors are."""

ACCELERATION = ("acc_x", "acc_y", "acc_z")
ROTATION = ("rot_w", "rot_x", "rot_y", "rot_z")
THERMOPILES = tuple(f"thm_{sensor}" for sensor in range(1, 6))
PIXELS = tuple(f"tof_{sensor}_v{pixel}" for sensor in range(1, 6) for pixel in range(64))
SENSORS = (*ACCELERATION, *ROTATION, *THERMOPILES, *PIXELS)

# What a frame is part of: the hand moves, waits at its target, performs the gesture.
PHASES = {
    "Relaxes and moves hand to target location": 0,
    "Moves hand to target location": 0,
    "Hand at target location": 1,
    "Performs gesture": 2,
}
