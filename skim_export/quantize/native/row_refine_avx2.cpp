// Compiled with -mavx2; called only where the processor has it.
#define SKIM_FEEDBACK_ROWS FeedbackRowsAvx2
#define SKIM_REFINE_ROWS RefineRowsAvx2
#include "row_refine_body.h"
