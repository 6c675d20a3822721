#define SKIM_FEEDBACK_ROWS FeedbackRows
#define SKIM_REFINE_ROWS RefineRows
#include "row_refine_body.h"
