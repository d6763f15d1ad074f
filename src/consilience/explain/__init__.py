"""The main job: attributions of a batch, measured, combined, judged on fresh draws."""
