"""MuJoCo, or one line on what it lacks."""

import os

NO_OPENGL = (
    "no OpenGL for images: {} failed ({}); on Debian or Ubuntu install 'libegl1 libgl1-mesa-dri' (EGL) or "
    "'libosmesa6' (OSMesa)"
)

try:
    import mujoco as mujoco
except ModuleNotFoundError as error:
    raise ImportError("the simulated robot needs MuJoCo: pip install 'serl-robots[mujoco]'") from error
except Exception as error:
    # It loads the OpenGL library that MUJOCO_GL names at once, and raises whatever that raises.
    named = os.environ.get("MUJOCO_GL", "OpenGL")
    raise RuntimeError(NO_OPENGL.format(named, type(error).__name__)) from error
