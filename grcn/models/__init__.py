"""The parts of the detectors: backbones, proposals, RoI heads, and the detector that joins them."""
