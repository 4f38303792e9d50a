"""The 3D medical matting network, 3DMM (paper, section 5): model, losses, augmentation. torch alone, no Ray."""
