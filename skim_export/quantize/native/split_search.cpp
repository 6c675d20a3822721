#define SKIM_SEARCH_SPLITS SearchSplits
#include "split_search_body.h"
