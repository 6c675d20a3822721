// Continues a text by the likeliest tokens: token ids in, token ids out.
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "skim_model.h"
#include "skim_runtime.h"

static const char usage[] =
    "usage: skim_run [OPTION]... WEIGHTS [TOKEN]...\n"
    "Continues the tokens, or those that stdin has if none are given, and prints the ids of new ones.\n"
    "  -n COUNT    at most so many new tokens (128)\n"
    "  -t THREADS  one for each core\n"
    "  -c CONTEXT  positions in the key/value cache (as many as the tokens and the new ones need)\n"
    "  -e ID       the token that ends the text, instead of the model's; -1: none does\n"
    "  --json      print tokens and measurements as one JSON object\n";

struct options {
  const char* weights;
  int32_t count, threads, context;  // context 0: as needed
  const int32_t* eos;
  int32_t eos_count;
  int32_t own_eos;
  bool json;
};

struct tokens {
  int32_t* ids;
  int32_t count;
};

struct measurements {
  double prompt_seconds, decode_seconds;
  int32_t decoded;  // new tokens after the first, the one that ended the text among them
  bool stopped;
};

static _Noreturn void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "skim_run: error: ");
  vfprintf(stderr, format, arguments);
  fprintf(stderr, "\n");
  va_end(arguments);
  exit(2);
}

static int32_t integer(const char* text, const char* what, int32_t least) {
  char* end;
  errno = 0;
  const long long value = strtoll(text, &end, 10);
  if (end == text || *end || errno || value < least || value > INT32_MAX) {
    fail("%s must be a whole number from %ld on, not %s", what, (long)least, text);
  }
  return (int32_t)value;
}

static void append(struct tokens* tokens, int32_t id) {
  if ((tokens->count & (tokens->count - 1)) == 0) {  // full, at each power of 2
    tokens->ids = realloc(tokens->ids, sizeof *tokens->ids * (tokens->count ? 2 * (size_t)tokens->count : 1));
    if (!tokens->ids) fail("not enough memory for the tokens");
  }
  tokens->ids[tokens->count++] = id;
}

static void read_tokens(struct tokens* tokens) {
  char word[32];
  while (scanf("%31s", word) == 1) append(tokens, integer(word, "a token", 0));
}

static void parse(int argc, char** argv, struct options* options, struct tokens* tokens) {
  for (int i = 1; i < argc; ++i) {
    const char* argument = argv[i];
    if (strcmp(argument, "-h") == 0 || strcmp(argument, "--help") == 0) {
      fputs(usage, stdout);
      exit(0);
    }
    if (strcmp(argument, "--json") == 0) {
      options->json = true;
    } else if (argument[0] == '-') {
      if (strlen(argument) != 2 || !strchr("ntce", argument[1]))
        fail("unknown option %s; see skim_run --help", argument);
      if (++i == argc) fail("option %s needs a value", argument);
      if (argument[1] == 'n') options->count = integer(argv[i], "-n", 1);
      if (argument[1] == 't') options->threads = integer(argv[i], "-t", 1);
      if (argument[1] == 'c') options->context = integer(argv[i], "-c", 1);
      if (argument[1] == 'e') {
        options->own_eos = integer(argv[i], "-e", -1);
        options->eos = &options->own_eos;
        options->eos_count = 1;
      }
    } else if (!options->weights) {
      options->weights = argument;
    } else {
      append(tokens, integer(argument, "a token", 0));
    }
  }
  if (!options->weights) fail("the file weights.bin is missing; see skim_run --help");
  if (!tokens->count) read_tokens(tokens);
  if (!tokens->count) fail("there are no tokens to continue");
}

static double seconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

// Bytes that were resident at most, mapped weights among them. Not by getrusage, which after a fork and exec still has
// what the parent took.
static long long peak_memory(void) {
  FILE* status = fopen("/proc/self/status", "r");
  char line[256];
  long long kilobytes = 0;
  while (status && fgets(line, sizeof line, status)) {
    if (sscanf(line, "VmHWM: %lld", &kilobytes) == 1) break;
  }
  if (status) fclose(status);
  return 1024 * kilobytes;
}

static bool ends(const struct options* options, int32_t token) {
  for (int32_t i = 0; i < options->eos_count; ++i) {
    if (options->eos[i] == token) return true;
  }
  return false;
}

// The likeliest token; the first of equal ones.
static int32_t likeliest(const float* logits) {
  int32_t best = 0;
  for (int32_t i = 1; i < skim_model.vocabulary; ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return best;
}

static int32_t step(struct skim_session* session, const int32_t* tokens, int32_t count) {
  struct skim_error error;
  const float* logits = skim_step(session, tokens, count, &error);
  if (!logits) fail("%s", error.text);
  return likeliest(logits);
}

static void print_token(int32_t token, bool first) {
  printf(first ? "%ld" : " %ld", (long)token);
  fflush(stdout);
}

static struct measurements generate(const struct options* options, struct skim_session* session,
                                    const struct tokens* prompt, struct tokens* new) {
  struct measurements m = {0};
  const double started = seconds();
  int32_t token = step(session, prompt->ids, prompt->count);
  const double decoding = seconds();
  while (!(m.stopped = ends(options, token))) {
    append(new, token);
    if (!options->json) print_token(token, new->count == 1);
    if (new->count == options->count) break;
    token = step(session, &token, 1);
    ++m.decoded;
  }
  m.prompt_seconds = decoding - started;
  m.decode_seconds = seconds() - decoding;
  return m;
}

static void print_json(const struct options* options, const struct measurements* m, const struct tokens* prompt,
                       const struct tokens* new) {
  printf("{\"target\": \"%s\", \"threads\": %ld, \"context\": %ld, \"tokens\": [", skim_model.target,
         (long)options->threads, (long)options->context);
  for (int32_t i = 0; i < new->count; ++i) printf(i ? ", %ld" : "%ld", (long)new->ids[i]);
  printf("], \"stopped\": %s, \"prompt_tokens\": %ld, \"prompt_seconds\": %.9f, ", m->stopped ? "true" : "false",
         (long)prompt->count, m->prompt_seconds);
  printf("\"decode_tokens\": %ld, \"decode_seconds\": %.9f, ", (long)m->decoded, m->decode_seconds);
  printf("\"weights_bytes\": %llu, \"read_bytes\": %llu, \"peak_memory_bytes\": %lld}\n",
         (unsigned long long)skim_model.weights_size, (unsigned long long)skim_model.read_bytes, peak_memory());
}

static void print_summary(const struct options* options, const struct measurements* m, const struct tokens* prompt,
                          const struct tokens* new) {
  const double speed = m->decoded ? m->decoded / m->decode_seconds : 0;
  fprintf(stderr, "prompt: %ld tokens, %.1f tokens/s | decode: %ld tokens, %.1f tokens/s, %.2f GB/s of weights | ",
          (long)prompt->count, prompt->count / m->prompt_seconds, (long)new->count, speed,
          1e-9 * speed * (double)skim_model.read_bytes);
  fprintf(stderr, "threads: %ld | weights: %.1f MB | peak memory: %.1f MB\n", (long)options->threads,
          1e-6 * (double)skim_model.weights_size, 1e-6 * (double)peak_memory());
}

int main(int argc, char** argv) {
  const long cores = sysconf(_SC_NPROCESSORS_ONLN);
  struct options options = {.count = 128,
                            .threads = cores < 1 ? 1 : (int32_t)cores,
                            .eos = skim_model.eos,
                            .eos_count = skim_model.eos_count};
  struct tokens prompt = {0}, new = {0};
  parse(argc, argv, &options, &prompt);

  const int32_t context = options.context ? options.context : skim_model.context;
  const int32_t room = context - prompt.count;
  if (room < 1) fail("the prompt has %ld tokens, but the context only %ld", (long)prompt.count, (long)context);
  if (options.count > room) options.count = room;
  if (!options.context) options.context = prompt.count + options.count;

  struct skim_error error;
  struct skim_session* session = skim_open(options.weights, options.threads, options.context, &error);
  if (!session) fail("%s", error.text);
  const struct measurements m = generate(&options, session, &prompt, &new);
  if (options.json) {
    print_json(&options, &m, &prompt, &new);
  } else {
    printf("\n");
    fflush(stdout);
    print_summary(&options, &m, &prompt, &new);
  }
  if (fflush(stdout) != 0 || ferror(stdout)) fail("stdout cannot be written to");
  skim_close(session);
  free(prompt.ids);
  free(new.ids);
  return 0;
}
