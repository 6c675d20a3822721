#include "skim_runtime.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "skim_operators.h"
#include "skim_session.h"
#include "skim_weights.h"

static void run_operator(struct skim_thread* thread, const struct skim_operator* op) {
  const struct skim_session* session = thread->session;
  struct skim_range tokens = {0, session->count};
  if (op->last_only) tokens.begin = session->last ? tokens.end - 1 : tokens.end;
  if (op->kind == SKIM_ATTENTION) {
    skim_attend(thread, op, tokens);  // stores keys and values even if no token is asked for
    return;
  }
  if (tokens.begin == tokens.end) return;
  switch (op->kind) {
    case SKIM_EMBED:
      skim_embed(thread, op, tokens);
      break;
    case SKIM_NORM:
    case SKIM_ADD_NORM:
      skim_norm(thread, op, tokens);
      break;
    case SKIM_PREPARE:
      skim_prepare_input(thread, op, tokens);
      break;
    case SKIM_PRODUCT:
      skim_product(thread, op, tokens);
      break;
    default:
      skim_elementwise(thread, op, tokens);
  }
}

static void run_program(struct skim_thread* thread) {
  struct skim_session* session = thread->session;
  const enum skim_barrier_when when = session->count > 1 ? SKIM_IF_MANY_TOKENS : SKIM_ALWAYS;
  for (int32_t i = 0; i < skim_model.operator_count; ++i) {
    const struct skim_operator* op = &skim_model.operators[i];
    if (op->barrier >= when) skim_barrier_wait(&session->barrier);
    run_operator(thread, op);
  }
}

// Threads meet twice for each step: to begin and to end it.
static void* work(void* argument) {
  struct skim_thread* thread = argument;
  struct skim_session* session = thread->session;
  for (;;) {
    skim_barrier_wait(&session->barrier);
    if (session->stop) return NULL;
    run_program(thread);
    skim_barrier_wait(&session->barrier);
  }
}

static void run_step(struct skim_session* session) {
  for (int32_t i = 0; i < skim_model.operator_count; ++i) {
    atomic_store_explicit(&session->taken[i], 0, memory_order_relaxed);
  }
  skim_barrier_wait(&session->barrier);
  run_program(&session->thread[0]);
  skim_barrier_wait(&session->barrier);
  session->length += session->count;
}

const float* skim_step(struct skim_session* session, const int32_t* tokens, int32_t count, struct skim_error* error) {
  if (count < 1) {
    snprintf(error->text, sizeof error->text, "no tokens");
    return NULL;
  }
  if (count > session->context - session->length) {
    snprintf(error->text, sizeof error->text, "%lld tokens do not fit the context of %ld",
             (long long)session->length + count, (long)session->context);
    return NULL;
  }
  for (int32_t i = 0; i < count; ++i) {
    if (tokens[i] < 0 || tokens[i] >= skim_model.vocabulary) {
      snprintf(error->text, sizeof error->text, "token %ld is none of the model's, which are 0 to %ld", (long)tokens[i],
               (long)skim_model.vocabulary - 1);
      return NULL;
    }
  }
  for (int32_t done = 0; done < count; done += session->count) {
    const int32_t rest = count - done;
    session->tokens = tokens + done;
    session->count = rest < skim_model.chunk ? rest : skim_model.chunk;
    session->last = rest <= skim_model.chunk;
    run_step(session);
  }
  return skim_row(&session->thread[0], skim_model.logits, 0);
}

void skim_reset(struct skim_session* session) { session->length = 0; }

// Memory for whole cache lines of at least one; NULL and an error if there is not so much.
static void* allocate(uint64_t bytes, const char* what, struct skim_error* error) {
  bytes = (bytes + 63) / 64 * 64;
  void* memory = bytes <= SIZE_MAX ? aligned_alloc(64, (size_t)bytes) : NULL;
  if (!memory) {
    snprintf(error->text, sizeof error->text, "not enough memory: %s takes %llu bytes", what,
             (unsigned long long)bytes);
  }
  return memory;
}

static uint64_t cache_floats(const struct skim_attention* a, int32_t capacity) {
  return (uint64_t)a->kv_heads * (uint64_t)a->head_size * (uint64_t)capacity;
}

static bool allocate_cache(struct skim_session* session, struct skim_error* error) {
  uint64_t floats = 0;
  for (int32_t i = 0; i < skim_model.attention_count; ++i) {
    floats += 2 * cache_floats(&skim_model.attentions[i], session->capacity);
  }
  const size_t pointers = (size_t)skim_model.attention_count * sizeof(float*);
  session->cache = allocate(floats * sizeof(float), "the key/value cache", error);
  session->keys = allocate(pointers, "a list", error);
  session->values = allocate(pointers, "a list", error);
  if (!session->cache || !session->keys || !session->values) return false;
  float* next = session->cache;
  for (int32_t i = 0; i < skim_model.attention_count; ++i) {
    const size_t size = (size_t)cache_floats(&skim_model.attentions[i], session->capacity);
    session->keys[i] = next;
    session->values[i] = next + size;
    next += 2 * size;
  }
  return true;
}

// What `attend` needs: a key, and for each head of a group its query and its scores.
static uint64_t scratch_floats(int32_t capacity) {
  uint64_t most = 0;
  for (int32_t i = 0; i < skim_model.attention_count; ++i) {
    const struct skim_attention* a = &skim_model.attentions[i];
    const uint64_t group = (uint64_t)(a->heads / a->kv_heads), size = (uint64_t)a->head_size;
    const uint64_t floats = size + group * (size + (uint64_t)capacity);
    most = floats > most ? floats : most;
  }
  return most;
}

static bool allocate_threads(struct skim_session* session, struct skim_error* error) {
  const uint64_t scratch_bytes = scratch_floats(session->capacity) * sizeof(float);
  session->thread = calloc((size_t)session->threads, sizeof *session->thread);
  if (!session->thread) {
    snprintf(error->text, sizeof error->text, "not enough memory for %ld threads", (long)session->threads);
    return false;
  }
  for (int32_t i = 0; i < session->threads; ++i) {
    struct skim_thread* thread = &session->thread[i];
    thread->session = session;
    thread->index = i;
    thread->own = allocate(skim_model.own_bytes, "a thread", error);
    thread->scratch = allocate(scratch_bytes, "a thread", error);
    if (!thread->own || !thread->scratch) return false;
  }
  return true;
}

static bool start_threads(struct skim_session* session, struct skim_error* error) {
  skim_barrier_init(&session->barrier, (unsigned)session->threads);
  for (session->started = 1; session->started < session->threads; ++session->started) {  // the first is the caller's
    struct skim_thread* thread = &session->thread[session->started];
    const int code = pthread_create(&thread->handle, NULL, work, thread);
    if (code != 0) {
      snprintf(error->text, sizeof error->text, "thread %ld cannot be started: %s", (long)session->started + 1,
               strerror(code));
      return false;
    }
  }
  return true;
}

struct skim_session* skim_open(const char* weights, int32_t threads, int32_t context, struct skim_error* error) {
  if (threads < 1) {
    snprintf(error->text, sizeof error->text, "threads must be at least 1, not %ld", (long)threads);
    return NULL;
  }
  if (context < 1 || context > skim_model.context) {
    snprintf(error->text, sizeof error->text, "the context must be 1 to %ld tokens, which is the model's, not %ld",
             (long)skim_model.context, (long)context);
    return NULL;
  }
  struct skim_session* session = calloc(1, sizeof *session);
  if (!session) {
    snprintf(error->text, sizeof error->text, "not enough memory");
    return NULL;
  }
  session->threads = threads;
  session->context = context;
  session->capacity = (context + SKIM_CACHE_LANES - 1) / SKIM_CACHE_LANES * SKIM_CACHE_LANES;
  if ((session->weights = skim_map_weights(weights, error)) && allocate_cache(session, error) &&
      (session->shared = allocate(skim_model.shared_bytes, "the activations", error)) &&
      (session->taken = allocate((uint64_t)skim_model.operator_count * sizeof(atomic_int), "a list", error)) &&
      allocate_threads(session, error) && start_threads(session, error)) {
    return session;
  }
  skim_close(session);
  return NULL;
}

void skim_close(struct skim_session* session) {
  if (session->started) {
    atomic_store(&session->barrier.parties, (unsigned)session->started);  // fewer, if one could not be started
    session->stop = true;
    skim_barrier_wait(&session->barrier);
    for (int32_t i = 1; i < session->started; ++i) pthread_join(session->thread[i].handle, NULL);
    skim_barrier_destroy(&session->barrier);
  }
  for (int32_t i = 0; session->thread && i < session->threads; ++i) {
    free(session->thread[i].own);
    free(session->thread[i].scratch);
  }
  free(session->thread);
  free(session->shared);
  free(session->taken);
  free(session->keys);
  free(session->values);
  free(session->cache);
  if (session->weights) skim_unmap_weights(session->weights);
  free(session);
}
