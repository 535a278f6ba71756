"""What every part of the workflow needs and nothing of which knows an object: errors, files, workers, devices."""
