#define _POSIX_C_SOURCE 200809L
#include "skim_barrier.h"

#include <sched.h>
#include <stdbool.h>

// A few microseconds of spinning are what threads on cores of their own differ by. Where they have to share cores, with
// each other or with other programs, yielding is faster than sleeping: most often the one waited for runs next.
enum { SPINS = 200, YIELDS = 200 };

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");  // `yield` does nothing on cores without hyper-threading
#elif defined(__arm__)
  __asm__ volatile("yield");
#endif
}

static bool met(struct skim_barrier* barrier, unsigned generation) {
  return atomic_load_explicit(&barrier->generation, memory_order_acquire) != generation;
}

void skim_barrier_init(struct skim_barrier* barrier, unsigned parties) {
  atomic_init(&barrier->parties, parties);
  atomic_init(&barrier->arrived, 0);
  atomic_init(&barrier->generation, 0);
  pthread_mutex_init(&barrier->mutex, NULL);
  pthread_cond_init(&barrier->changed, NULL);
}

void skim_barrier_destroy(struct skim_barrier* barrier) {
  pthread_cond_destroy(&barrier->changed);
  pthread_mutex_destroy(&barrier->mutex);
}

void skim_barrier_wait(struct skim_barrier* barrier) {
  const unsigned generation = atomic_load_explicit(&barrier->generation, memory_order_relaxed);
  const unsigned arrived = atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) + 1;
  if (arrived == atomic_load_explicit(&barrier->parties, memory_order_relaxed)) {
    atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
    pthread_mutex_lock(&barrier->mutex);  // or one that is about to sleep would miss the broadcast
    atomic_store_explicit(&barrier->generation, generation + 1, memory_order_release);
    pthread_cond_broadcast(&barrier->changed);
    pthread_mutex_unlock(&barrier->mutex);
    return;
  }
  for (int spin = 0; spin < SPINS; ++spin) {
    if (met(barrier, generation)) return;
    relax();
  }
  for (int yield = 0; yield < YIELDS; ++yield) {
    if (met(barrier, generation)) return;
    sched_yield();
  }
  pthread_mutex_lock(&barrier->mutex);
  while (!met(barrier, generation)) pthread_cond_wait(&barrier->changed, &barrier->mutex);
  pthread_mutex_unlock(&barrier->mutex);
}
