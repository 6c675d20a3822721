// Compiled with -mavx2; called only where the processor has it.
#define SKIM_SEARCH_SPLITS SearchSplitsAvx2
#include "split_search_body.h"
