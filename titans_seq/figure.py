"""The figure that all plots return."""

from io import BytesIO

from matplotlib import figure


class Figure(figure.Figure):
    """A matplotlib figure that a notebook shows, whether or not pyplot was imported; it belongs to no pyplot state."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()
