"""Offscreen images with whatever OpenGL the machine has.

MuJoCo chooses its OpenGL back end once, when it is first imported, from the variable MUJOCO_GL, and without
it wants a display. Here the context is made directly: the back end that MUJOCO_GL names, else EGL (a GPU, or
Mesa in software) if it works, else OSMesa (software).
"""

import ctypes
import importlib
import os
import platform
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serl_robots.sim._mujoco import NO_OPENGL, mujoco

EGL_PLATFORM_DEVICE = 0x313F  # EGL_EXT_platform_device


def choose_backend() -> str:
    """The back end to use: the name of one of MuJoCo's context modules."""
    named = os.environ.get("MUJOCO_GL", "").strip().lower()
    if named:
        return {"glx": "glfw", "wgl": "glfw"}.get(named, named)
    if platform.system() == "Linux":
        return "egl" if _egl_works() else "osmesa"
    return "cgl" if platform.system() == "Darwin" else "glfw"


def _egl_works() -> bool:
    """Whether EGL has a device that starts.

    The library is loaded for this question only: once the whole process sees EGL, MuJoCo looks for OpenGL
    nowhere else, and OSMesa would fail.
    """
    try:
        egl = ctypes.CDLL("libEGL.so.1", mode=ctypes.RTLD_LOCAL)
    except OSError:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    egl.eglInitialize.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    query_address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    display_address = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query_address or not display_address:
        return False
    integer, pointer = ctypes.c_int, ctypes.c_void_p
    query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, integer, pointer, pointer)(query_address)
    platform_display = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(display_address)
    devices, count = (pointer * 32)(), integer(0)
    if not query_devices(len(devices), devices, ctypes.addressof(count)):
        return False
    displays = [platform_display(EGL_PLATFORM_DEVICE, device, None) for device in devices[: count.value]]
    return any(display and egl.eglInitialize(display, None, None) for display in displays)


@cache
def _context_class() -> Any:
    """The GLContext class of the chosen back end.

    Raises:
        RuntimeError: if it cannot make a context.
    """
    name = choose_backend()
    try:
        context_class = importlib.import_module(f"mujoco.{name}").GLContext
        context_class(16, 16).free()
    except Exception as error:  # whatever a missing or broken OpenGL library raises
        raise RuntimeError(NO_OPENGL.format(name, type(error).__name__)) from error
    return context_class


@contextmanager
def _current(context: Any) -> Iterator[None]:
    """Use a context, and detach it from this thread afterwards: another thread may use it next."""
    context.make_current()
    try:
        yield
    finally:
        _detach()


def _detach() -> None:
    name = choose_backend()
    if name == "egl":
        egl, module = importlib.import_module("OpenGL.EGL"), importlib.import_module("mujoco.egl")
        egl.eglMakeCurrent(module.EGL_DISPLAY, egl.EGL_NO_SURFACE, egl.EGL_NO_SURFACE, egl.EGL_NO_CONTEXT)
    elif name == "osmesa":
        importlib.import_module("OpenGL.osmesa").OSMesaMakeCurrent(None, None, 0x1406, 0, 0)  # GL_FLOAT
    elif name == "glfw":
        importlib.import_module("glfw").make_context_current(None)


def _free(context: Any, renderer: Any) -> None:
    with _current(context):
        renderer.free()
    context.free()


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
        self._scene = mujoco.MjvScene(model, maxgeom=200)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0  # sites are for the controller, not for the eye
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        with _current(self._context):
            self._renderer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._renderer)
        # Also at exit, while the OpenGL module can still be used.
        self._free = weakref.finalize(self, _free, self._context, self._renderer)
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.empty((height, width, 3), np.uint8)

    def render(self, data: Any, camera: str) -> NDArray[np.uint8]:
        """The image [height, width, 3] RGB of the scene's camera of this name."""
        self._view.fixedcamid = self._model.camera(camera).id
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._view, everything, self._scene)
        with _current(self._context):
            mujoco.mjr_render(self._rectangle, self._scene, self._renderer)
            mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._renderer)
        return np.ascontiguousarray(self._pixels[::-1])  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Free the graphics memory; the camera must not be used afterwards."""
        self._free()
