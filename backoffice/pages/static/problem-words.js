// Texts for buyers by problem code.

const WORDS = {
  sold_out: "Sold out: there are not enough units left for this order.",
  purchase_limit_exceeded: "You have reached the limit per buyer in this sale.",
  sale_not_open: "The sale is not open at the moment.",
  sale_ended: "The sale has ended.",
  sale_not_found: "This sale does not exist.",
  sku_not_found: "This item is not part of the sale.",
  order_not_found: "This account has no such order.",
  rate_limited: "Too many requests.",
  overloaded: "The shop is very busy.",
  dependency_unavailable: "The sale is temporarily unavailable.",
  outcome_unknown: "We do not know yet whether your order was accepted.",
  no_answer: "No connection to the server.",
  request_timeout: "The connection is too slow.",
  internal_error: "Something went wrong on our side.",
  forbidden: "This account cannot buy. Log in with a buyer's account.",
  credentials_invalid: "The e-mail address or the password is wrong.",
  email_taken: "An account with this address exists. Log in instead.",
  idempotency_key_reused: "This attempt was used for another order. Please buy again.",
};
// After these the order stays as it is, and the buyer can try again.
const PAYING = {
  dependency_unavailable: "The payment provider is not available at the moment.",
  overloaded: "The shop is very busy.",
  internal_error: "Something went wrong on our side.",
  no_answer: "No connection to the server.",
  rate_limited: "Too many requests.",
  outcome_unknown: "We do not know yet whether the payment page is ready.",
};

export const words = (problem) => WORDS[problem.code] ?? problem.text;

/** A problem on the way to the payment page. */
export const payingWords = (problem) =>
  problem.code in PAYING ? `${PAYING[problem.code]} Your order stays reserved until the hold ends. Please try again.` : words(problem);
