#include "skim_barrier.h"

enum { SPINS = 2000 };  // some ten microseconds: longer than the threads differ by in one operator

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");  // `yield` does nothing on cores without hyper-threading
#elif defined(__arm__)
  __asm__ volatile("yield");
#endif
}

void skim_barrier_init(struct skim_barrier* barrier, unsigned parties) {
  atomic_init(&barrier->parties, parties);
  atomic_init(&barrier->arrived, 0);
  atomic_init(&barrier->generation, 0);
  pthread_mutex_init(&barrier->mutex, NULL);
  pthread_cond_init(&barrier->met, NULL);
}

void skim_barrier_destroy(struct skim_barrier* barrier) {
  pthread_cond_destroy(&barrier->met);
  pthread_mutex_destroy(&barrier->mutex);
}

void skim_barrier_wait(struct skim_barrier* barrier) {
  const unsigned generation = atomic_load_explicit(&barrier->generation, memory_order_relaxed);
  const unsigned arrived = atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) + 1;
  if (arrived == atomic_load_explicit(&barrier->parties, memory_order_relaxed)) {
    atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
    pthread_mutex_lock(&barrier->mutex);  // or one that is about to sleep would miss the broadcast
    atomic_store_explicit(&barrier->generation, generation + 1, memory_order_release);
    pthread_cond_broadcast(&barrier->met);
    pthread_mutex_unlock(&barrier->mutex);
    return;
  }
  for (int spin = 0; spin < SPINS; ++spin) {
    if (atomic_load_explicit(&barrier->generation, memory_order_acquire) != generation) return;
    relax();
  }
  pthread_mutex_lock(&barrier->mutex);
  while (atomic_load_explicit(&barrier->generation, memory_order_acquire) == generation) {
    pthread_cond_wait(&barrier->met, &barrier->mutex);
  }
  pthread_mutex_unlock(&barrier->mutex);
}
