# This file is part of latent_coadds.
#
# Developed for the LSST Data Management System.
# See the COPYRIGHT file at the top-level directory of this distribution
# for details of code ownership.
#
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

__all__ = ("make_detector",)

from typing import Any, cast

from lsst.images import Box
from lsst.images.cameras import Detector, DetectorSerializationModel

# lsst.images has no public way to build the frames of a camera, but reads
# them from this, the text form of an AST FrameSet.
_FRAMES = """ Begin FrameSet
 IsA Frame
    Nframe = 3
    Currnt = 3
    Lnk2 = 1
    Lnk3 = 1
    Frm1 =
       Begin Frame
          Ident = "FOCAL_PLANE"
       IsA Object
          Naxes = 2
          Ax1 =
             Begin Axis
                Label = "x"
                Unit = "mm"
             End Axis
          Ax2 =
             Begin Axis
                Label = "y"
                Unit = "mm"
             End Axis
       End Frame
    Frm2 =
       Begin Frame
          Ident = "FIELD_ANGLE"
       IsA Object
          Naxes = 2
          Ax1 =
             Begin Axis
                Unit = "rad"
             End Axis
          Ax2 =
             Begin Axis
                Unit = "rad"
             End Axis
       End Frame
    Frm3 =
       Begin Frame
          Ident = "DETECTOR_{detector:03d}"
       IsA Object
          Naxes = 2
          Ax1 =
             Begin Axis
                Unit = "pix"
                Top = {x_stop}
                Bottom = {x_start}
             End Axis
          Ax2 =
             Begin Axis
                Unit = "pix"
                Top = {y_stop}
                Bottom = {y_start}
             End Axis
       End Frame
    Map2 =
       Begin ZoomMap
          Nin = 2
       IsA Mapping
          Zoom = {radians_per_mm!r}
       End ZoomMap
    Map3 =
       Begin CmpMap
          Nin = 2
       IsA Mapping
          MapA =
             Begin ZoomMap
                Nin = 2
             IsA Mapping
                Zoom = {pixels_per_mm!r}
             End ZoomMap
          MapB =
             Begin ShiftMap
                Nin = 2
             IsA Mapping
                Sft1 = {x_reference!r}
                Sft2 = {y_reference!r}
             End ShiftMap
       End CmpMap
 End FrameSet
"""


def make_detector(
    *,
    instrument: str,
    detector: int,
    bbox: Box,
    visit: int | None = None,
    name: str | None = None,
    serial: str = "unknown",
    pixel_size: float = 0.015,
    pixel_scale: float = 0.168,
    focal_plane: tuple[float, float] = (0.0, 0.0),
) -> Detector:
    """Make the description of a detector without amplifiers.

    Parameters
    ----------
    instrument : `str`
        Name of the instrument.
    detector : `int`
        ID of the detector.
    bbox : `lsst.images.Box`
        Its science pixels.
    visit : `int`, optional
        Visit whose frame the detector belongs to.
    name, serial : `str`, optional
        Full name and serial number.
    pixel_size : `float`, optional
        Side of a pixel in millimetres.
    pixel_scale : `float`, optional
        Side of a pixel on the sky in arcseconds.
    focal_plane : `tuple` [`float`, `float`], optional
        Where the centre of the detector is, in millimetres.

    Returns
    -------
    detector : `lsst.images.cameras.Detector`
        The description; its frames are unrotated and undistorted.
    """
    center = ((bbox.x.start + bbox.x.stop - 1) / 2, (bbox.y.start + bbox.y.stop - 1) / 2)
    text = _FRAMES.format(
        detector=detector,
        x_start=bbox.x.start,
        x_stop=bbox.x.stop,
        y_start=bbox.y.start,
        y_stop=bbox.y.stop,
        radians_per_mm=pixel_scale / 206264.80624709636 / pixel_size,
        pixels_per_mm=1 / pixel_size,
        x_reference=float(center[0] - focal_plane[0] / pixel_size),
        y_reference=float(center[1] - focal_plane[1] / pixel_size),
    )
    orientation = {
        "focal_plane_x": focal_plane[0],
        "focal_plane_y": focal_plane[1],
        "focal_plane_z": 0.0,
        "pixel_reference_x": center[0],
        "pixel_reference_y": center[1],
    }
    attributes = {
        "name": name or f"detector_{detector:03d}",
        "id": detector,
        "type": "SCIENCE",
        "serial": serial,
        "bbox": bbox,
        "orientation": orientation,
        "pixel_size": pixel_size,
        "physical_type": "CCD",
    }
    model = DetectorSerializationModel.model_validate(
        {"attributes": attributes, "frames": {"instrument": instrument, "ast": text}, "visit": visit}
    )
    # Neither this model nor the frames within keep anything in an archive.
    return model.deserialize(cast(Any, None))
