"""The columns of LEAP's files, in their order: 60 levels, level 0 at the top of the atmosphere."""

LEVELS = 60
PROFILES = (
    "state_t", "state_q0001", "state_q0002", "state_q0003", "state_u", "state_v",
    "pbuf_ozone", "pbuf_CH4", "pbuf_N2O",
)  # fmt: skip
SCALARS = (
    "state_ps", "pbuf_SOLIN", "pbuf_LHFLX", "pbuf_SHFLX", "pbuf_TAUX", "pbuf_TAUY", "pbuf_COSZRS",
    "cam_in_ALDIF", "cam_in_ALDIR", "cam_in_ASDIF", "cam_in_ASDIR", "cam_in_LWUP", "cam_in_ICEFRAC",
    "cam_in_LANDFRAC", "cam_in_OCNFRAC", "cam_in_SNOWHLAND",
)  # fmt: skip
TENDENCIES = ("ptend_t", "ptend_q0001", "ptend_q0002", "ptend_q0003", "ptend_u", "ptend_v")
FLUXES = (
    "cam_out_NETSW", "cam_out_FLWDS", "cam_out_PRECSC", "cam_out_PRECC",
    "cam_out_SOLS", "cam_out_SOLL", "cam_out_SOLSD", "cam_out_SOLLD",
)  # fmt: skip


def levels_of(names: tuple[str, ...]) -> list[str]:
    """``name_0`` to ``name_59`` of each name."""
    return [f"{name}_{level}" for name in names for level in range(LEVELS)]


# As in the files: the first six profiles, the scalars, then the three gases.
INPUTS = (*levels_of(PROFILES[:6]), *SCALARS, *levels_of(PROFILES[6:]))
TARGETS = (*levels_of(TENDENCIES), *FLUXES)
