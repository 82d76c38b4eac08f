"""From live events to the state of a user that a scorer needs: see
:mod:`limerank.serving.state.users`."""

from limerank.serving.state.entries import MarkedIndex
from limerank.serving.state.stored import Seen, Stream, Window
from limerank.serving.state.updating import Mode
from limerank.serving.state.users import STATE_BYTES, Ready, UserStates

__all__ = ["STATE_BYTES", "MarkedIndex", "Mode", "Ready", "Seen", "Stream", "UserStates", "Window"]
