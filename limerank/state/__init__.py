"""From live events to the state of a user that a scorer needs: see :mod:`limerank.state.users`."""

from limerank.state.kept import Seen, Stream, Window
from limerank.state.users import MarkedIndex, Mode, Ready, UserStates

__all__ = ["MarkedIndex", "Mode", "Ready", "Seen", "Stream", "UserStates", "Window"]
