"""Image, audio and video files to patches, decoded in subprocesses that can be killed."""
