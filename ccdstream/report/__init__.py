"""What a run leaves beside the video: files that people and programs read."""
