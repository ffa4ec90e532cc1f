"""Offscreen images with whatever OpenGL the machine has.

MuJoCo chooses its OpenGL back end once, when it is first imported, from the variable MUJOCO_GL, and without
it wants a display. Here the context is made directly: the back end that MUJOCO_GL names, else the first that
works of EGL (a GPU, or Mesa in software) and OSMesa (software).
"""

import importlib
import os
import platform
import sys
from functools import cache
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

_HELP = "no OpenGL for images: {tried}; on Debian or Ubuntu install 'libegl1 libgl1-mesa-dri' (EGL) or 'libosmesa6' (OSMesa)"


def backends() -> tuple[str, ...]:
    """The back ends to try, in order."""
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen:
        return ({"glx": "glfw", "wgl": "glfw"}.get(chosen, chosen),)
    if platform.system() == "Darwin":
        return ("cgl", "glfw")
    if platform.system() == "Windows" or os.environ.get("DISPLAY"):
        return ("egl", "osmesa", "glfw") if platform.system() == "Linux" else ("glfw",)
    return ("egl", "osmesa")


@cache
def _context_class() -> Any:
    """The GLContext class of the first back end that can make a context.

    Raises:
        RuntimeError: if none can.
    """
    failures = []
    for name in backends():
        try:
            context_class = importlib.import_module(f"mujoco.{name}").GLContext
            context_class(16, 16).free()
        except Exception as error:  # whatever a missing or broken OpenGL library raises
            failures.append(f"{name} failed ({type(error).__name__})")
            _forget_opengl()
        else:
            return context_class
    raise RuntimeError(_HELP.format(tried=", ".join(failures)))


def _forget_opengl() -> None:
    """Let the next back end choose again: PyOpenGL binds itself to one platform when it is first imported."""
    os.environ.pop("PYOPENGL_PLATFORM", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "OpenGL"]:
        del sys.modules[name]


class Camera:
    """Renders a scene's named cameras at one image size."""

    def __init__(self, model: Any, height: int, width: int) -> None:
        """Make an OpenGL context.

        Args:
            model: the MuJoCo model.
            height: px.
            width: px.

        Raises:
            RuntimeError: if the machine has no usable OpenGL; the message names the packages that bring it.
        """
        self._model = model
        self._context = _context_class()(width, height)
        self._context.make_current()
        self._scene = mujoco.MjvScene(model, maxgeom=200)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0  # sites are for the controller, not for the eye
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._renderer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._renderer)
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.empty((height, width, 3), np.uint8)

    def render(self, data: Any, camera: str) -> NDArray[np.uint8]:
        """The image [height, width, 3] RGB of the scene's camera of this name."""
        self._context.make_current()
        self._view.fixedcamid = self._model.camera(camera).id
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._view, everything, self._scene)
        mujoco.mjr_render(self._rectangle, self._scene, self._renderer)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._renderer)
        return np.ascontiguousarray(self._pixels[::-1])  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free the context; the camera must not be used afterwards."""
        self._context.make_current()
        self._renderer.free()
        self._context.free()
