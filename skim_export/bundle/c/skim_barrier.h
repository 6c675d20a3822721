// A barrier for threads that meet many thousand times a second.
#pragma once

#include <pthread.h>
#include <stdatomic.h>

struct skim_barrier {
  atomic_uint parties;
  atomic_uint arrived;
  atomic_uint generation;  // how often all have met
  pthread_mutex_t mutex;
  pthread_cond_t changed;  // the generation
};

void skim_barrier_init(struct skim_barrier* barrier, unsigned parties);
void skim_barrier_destroy(struct skim_barrier* barrier);

// Returns when all parties have called it: spins for a moment, then sleeps.
void skim_barrier_wait(struct skim_barrier* barrier);
