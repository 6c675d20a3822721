"""The steps: in each module a function `run(work)`, which raises what makes the step fail."""
