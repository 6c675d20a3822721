"""What measurements of kernels and models share: facts about the machine, random layers, sessions of them."""
