"""MuJoCo, or one line on what it lacks."""

import os

NO_OPENGL = (
    "no OpenGL for images: {} failed ({}); on Debian or Ubuntu install 'libegl1 libgl1-mesa-dri' (EGL) or "
    "'libosmesa6' (OSMesa)"
)

try:
    import mujoco as mujoco
except Exception as error:
    if isinstance(error, ModuleNotFoundError) and error.name == "mujoco":
        raise ImportError("the simulated robot needs MuJoCo: pip install 'serl-robots[mujoco]'") from error
    if not (named := os.environ.get("MUJOCO_GL")):
        raise
    # It loads the OpenGL library that the variable names at once, and raises whatever that raises.
    raise ValueError(NO_OPENGL.format(f"MUJOCO_GL={named}", type(error).__name__)) from error
