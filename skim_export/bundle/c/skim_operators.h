// The operators of a program: each computes the thread's part of it for the given tokens.
#pragma once

#include "skim_session.h"

void skim_embed(const struct skim_thread* thread, const struct skim_operator* op, struct skim_range tokens);
void skim_norm(const struct skim_thread* thread, const struct skim_operator* op, struct skim_range tokens);
void skim_prepare_input(const struct skim_thread* thread, const struct skim_operator* op, struct skim_range tokens);
void skim_product(const struct skim_thread* thread, const struct skim_operator* op, struct skim_range tokens);
void skim_elementwise(const struct skim_thread* thread, const struct skim_operator* op, struct skim_range tokens);
void skim_attend(struct skim_thread* thread, const struct skim_operator* op, struct skim_range tokens);
