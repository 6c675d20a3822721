// logits WEIGHTS THREADS PROMPT TOKEN...: the logits after the first PROMPT tokens and after each of the others.
#include <stdio.h>
#include <stdlib.h>

#include "skim_model.h"
#include "skim_runtime.h"

int main(int argc, char** argv) {
  const int first = 4, count = argc - first, prompt = atoi(argv[3]);
  int32_t* tokens = malloc(sizeof *tokens * (size_t)count);
  for (int i = 0; i < count; ++i) tokens[i] = atoi(argv[first + i]);
  struct skim_error error;
  struct skim_session* session = skim_open(argv[1], atoi(argv[2]), count, &error);
  for (int done = 0; session && done < count;) {
    const int step = done ? 1 : prompt;
    const float* logits = skim_step(session, tokens + done, step, &error);
    if (!logits) break;
    fwrite(logits, sizeof *logits, (size_t)skim_model.vocabulary, stdout);
    done += step;
    if (done == count) {
      skim_close(session);
      free(tokens);
      return 0;
    }
  }
  fprintf(stderr, "%s\n", error.text);
  if (session) skim_close(session);
  free(tokens);
  return 1;
}
