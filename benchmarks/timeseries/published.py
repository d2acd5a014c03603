"""Published four-horizon means (MSE, MAE), to stand beside what is measured; other code, other hardware, not always every test window."""

SHORT = {
    "Titans LMM, its paper (table 3)": {
        "ETTh1": (0.420, 0.421),
        "ETTh2": (0.336, 0.382),
        "ETTm1": (0.358, 0.387),
        "ETTm2": (0.261, 0.309),
        "Weather": (0.231, 0.265),
    },
}
"""arXiv 2501.00663; its look-back is not printed, the peers' rows of its table are those at 96."""

LONG = {
    "DUET (KDD 2025)": {"ETTh1": 0.398, "ETTh2": 0.334, "ETTm1": 0.338, "ETTm2": 0.248, "Exchange": 0.280, "Weather": 0.218},
    "TimeBridge (ICML 2025)": {"ETTh1": 0.398, "ETTh2": 0.343, "ETTm1": 0.345, "ETTm2": 0.247, "Weather": 0.220},
}
"""MSE at the look-back that each paper found best."""
