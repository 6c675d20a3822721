// For what the kernels' loops are made of: GCC would leave some of it as calls, and registers would go through memory.
#pragma once

#define SKIM_INLINE inline __attribute__((always_inline))
