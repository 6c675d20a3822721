// Runs the model: tokens in, logits out.
#pragma once

#include <stdint.h>

struct skim_session;

struct skim_error {
  char text[256];  // one line
};

// Maps weights.bin and allocates the key/value cache for `context` tokens. Returns NULL and an error if it cannot.
struct skim_session* skim_open(const char* weights, int32_t threads, int32_t context, struct skim_error* error);

// Appends tokens[count] to those before and returns the logits of the last one, which stay valid until the next call.
// Returns NULL and an error if a token is unknown or the context full; the session is then as it was.
const float* skim_step(struct skim_session* session, const int32_t* tokens, int32_t count, struct skim_error* error);

// Forgets all tokens.
void skim_reset(struct skim_session* session);

void skim_close(struct skim_session* session);
