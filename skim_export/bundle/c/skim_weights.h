// The file of all tensors, mapped into memory.
#pragma once

#include "skim_runtime.h"

// Maps weights.bin of this model. Returns NULL and an error if the file is another one.
const uint8_t* skim_map_weights(const char* path, struct skim_error* error);

void skim_unmap_weights(const uint8_t* weights);
